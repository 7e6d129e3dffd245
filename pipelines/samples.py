"""Real data and real weights for a newcomer, taken out of published Python packages into a cache folder.

The project commits no data. `sample_table.SAMPLES` pins each wheel and each file by sha256. `fetch` lets uv
get the wheel (without its dependencies, from the index the user's own settings name), keeps only the named
files, and checks their hashes on every use. Files come under their final name by one rename each, so two
processes that fetch the same sample at once do the work twice and never see half a file.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import InputError
from pipelines.sample_table import SAMPLES, Member, Sample

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

TEMPORARY = ".fetching-"
UV_TIMEOUT_S = 900  # the largest wheel is 34 MB: 300 kbit/s still gets it
LEFTOVER_AGE_S = 24 * 3600  # a fetch killed this long ago is not coming back


def cache_folder(cache: str | Path | None = None) -> Path:
    """`cache`, else `$MASKBRIDGE_CACHE/samples`, else `~/.cache/maskbridge/samples`."""
    if cache is not None:
        return Path(cache)
    root = os.environ.get("MASKBRIDGE_CACHE")
    if root:
        return Path(root) / "samples"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskbridge" / "samples"


def find_sample(name: str) -> Sample:
    """The table's entry; InputError with the names there are (and a guess) for an unknown one."""
    if name in SAMPLES:
        return SAMPLES[name]
    guess = get_close_matches(name, SAMPLES, n=1)
    hint = f" (did you mean {guess[0]}?)" if guess else ""
    raise InputError(f"{name}: no such sample{hint}; there are {', '.join(SAMPLES)}")


def fetch(name: str, cache: str | Path | None = None) -> dict[str, Path]:
    """Files of a sample, each verified, as {file name: path}; fetched first where missing or damaged.

    A warm call reads and hashes the files (20 MB: 0.05 s) and touches no network. Raises InputError naming
    the sample when it is neither cached nor to be had, or when the index serves other bytes than the pinned.
    """
    sample = find_sample(name)
    folder = cache_folder(cache) / f"{sample.name}-{sample.version}"
    stale = [member for member in sample.members if not _is_intact(folder / member.name, member)]
    if stale:
        log.info("fetching sample %s (%s, keeping %.1f MB)", name, sample.requirement, sample.size / 1e6)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(folder)
            _install(sample, stale, folder)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{folder}: cannot keep sample {name} here ({reason})") from error
    return {member.name: folder / member.name for member in sample.members}


def fetch_weights(name: str, cache: str | Path | None = None) -> "dict[str, torch.Tensor]":
    """ImageNet weights of `efficientnet_lite0|1|2` under timm's names (of `tf_efficientnet_lite0|1|2`).

    The published file and timm's module list the same layers in the same order under other names (247 tensors
    for lite0, and 49 batch counters), so names are moved over in order; every tensor's role (the last part of
    its name) and shape must agree. The networks were trained on inputs scaled to -1..1 (mean, deviation 0.5).
    """
    find_sample(name)
    if name not in _weight_names():
        raise InputError(f"{name}: this sample is no set of weights; there are {', '.join(_weight_names())}")
    import timm
    import torch

    architecture = f"tf_{name}"
    (path,) = fetch(name, cache).values()
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # names and shapes only: no memory, no random initialisation
        ours = timm.create_model(architecture).state_dict()
    if len(theirs) != len(ours):
        raise InputError(f"{path}: {len(theirs)} tensors, but timm's {architecture} has {len(ours)}")
    renamed = {}
    for (source, tensor), (target, shape_only) in zip(theirs.items(), ours.items(), strict=True):
        same_role = source.rpartition(".")[2] == target.rpartition(".")[2]
        if not same_role or tensor.shape != shape_only.shape:
            raise InputError(
                f"{path}: tensor {source} {tuple(tensor.shape)} does not fit timm's {target} {tuple(shape_only.shape)}"
            )
        renamed[target] = tensor
    return renamed


def _weight_names() -> list[str]:
    return [name for name in SAMPLES if name.startswith("efficientnet_lite")]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_intact(path: Path, member: Member) -> bool:
    """True where the file is there with the pinned bytes; a damaged one is told in the log."""
    if not path.is_file():
        return False
    if path.stat().st_size == member.size and _sha256(path) == member.sha256:
        return True
    log.warning("%s: damaged in the cache, fetching it again", path)
    return False


def _remove_leftovers(folder: Path) -> None:
    """Drop what a fetch killed more than a day ago has left; a younger one may still be at work."""
    for leftover in folder.glob(TEMPORARY + "*"):
        if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:
            shutil.rmtree(leftover, ignore_errors=True)


def _install(sample: Sample, wanted: list[Member], folder: Path) -> None:
    """Unpack the wheel beside the target, check licence and members, rename the wanted ones into `folder`."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as temporary:
        wheel = Path(temporary) / "wheel"
        _uv_install(sample, wheel, folder)
        _check(sample, wheel / sample.licence.path, sample.licence.sha256, "licence text")
        for member in wanted:
            _check(sample, wheel / member.path, member.sha256, "file")
            # Copied, not moved: uv hard-links into its own cache, and our file must not be an alias of uv's.
            copy = Path(temporary) / member.name
            shutil.copyfile(wheel / member.path, copy)
            copy.replace(folder / member.name)


def _check(sample: Sample, path: Path, sha256: str, what: str) -> None:
    if not path.is_file():
        raise InputError(f"{sample.name}: {sample.requirement} holds no {what} {path.name}")
    if _sha256(path) != sha256:
        raise InputError(
            f"{sample.name}: {what} {path.name} of {sample.requirement} has not the pinned sha256 {sha256}"
        )


def _uv_install(sample: Sample, target: Path, folder: Path) -> None:
    """Let uv unpack the pinned wheel into `target`; nothing of it is built, imported or run."""
    requirements = target.with_suffix(".txt")
    requirements.write_text(f"{sample.requirement} --hash=sha256:{sample.wheel}\n", encoding="utf-8")
    command = [
        *_uv(),
        *("pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
        *("--python", sys.executable, "--target", str(target), "-r", str(requirements)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=UV_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(_unreachable(sample, folder, str(error))) from error
    if done.returncode != 0:
        log.debug("uv said: %s", done.stderr)
        raise InputError(_unreachable(sample, folder, done.stderr))


def _uv() -> list[str]:
    """The uv of this environment (it is in the lock), else one on the PATH."""
    beside = Path(sys.prefix) / ("Scripts/uv.exe" if os.name == "nt" else "bin/uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    return [found] if found else [sys.executable, "-m", "uv"]


def _unreachable(sample: Sample, folder: Path, said: str) -> str:
    """One line: the sample, uv's reason without addresses (they may hold passwords), and the way out."""
    words = " ".join(re.sub(r"\w+://\S+", "<index>", said).replace("×", " ").split())
    reason = words if len(words) <= 200 else words[:197] + "..."
    return (
        f"{sample.name}: sample is not in the cache and {sample.requirement} could not be fetched: {reason}; "
        f"connect this machine to a package index once, or copy the folder {folder} "
        f"from a machine that has it"
    )
