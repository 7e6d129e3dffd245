"""Where a result comes from: versions of what computed it and the git revision of this code."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

# What can move a number or a byte of the output; the whole environment is in requirements.lock.
DISTRIBUTIONS = (
    "maskbridge",
    "torch",
    "timm",
    "segmentation-models-pytorch",
    "numpy",
    "scipy",
    "rasterio",
    "shapely",
    "safetensors",
    "mlflow",
    "prefect",
)


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in DISTRIBUTIONS:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue  # a slim inference image need not have them all
    return tuple(found)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed distributions that compute; reads metadata, imports nothing."""
    return dict(_versions())


@cache
def git_revision() -> str | None:
    """Commit of this source tree, with `+changes` where it differs; None outside a git checkout.

    An image built without .git names its commit in MASKBRIDGE_GIT_REVISION.
    """
    named = os.environ.get("MASKBRIDGE_GIT_REVISION")
    if named:
        return named
    source = Path(__file__).resolve()
    try:  # installed into somebody else's repository (a .venv inside it), this file is not tracked there
        _git(source.parent, "ls-files", "--error-unmatch", source.name)
        revision = _git(source.parent, "rev-parse", "HEAD")
        changes = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def provenance() -> dict[str, object]:
    """What every bundle and run records about the code itself: `versions` and `git_revision`."""
    return {"versions": versions(), "git_revision": git_revision()}
