"""Provenance: versions without imports, and a revision that is this source tree's and nobody else's."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import provenance


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    provenance.git_revision.cache_clear()
    yield
    provenance.git_revision.cache_clear()


def test_versions_are_those_installed() -> None:
    import numpy

    assert provenance.versions()["numpy"] == numpy.__version__
    assert re.match(r"3\.\d+\.\d+", provenance.versions()["python"])


def test_the_environment_may_name_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKBRIDGE_GIT_REVISION", "v1-image")
    assert provenance.git_revision() == "v1-image"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_revision_of_a_checkout_its_changes_and_a_foreign_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    source = tmp_path / "provenance.py"
    source.write_text("# here\n")
    monkeypatch.setattr(provenance, "__file__", str(source))
    monkeypatch.delenv("MASKBRIDGE_GIT_REVISION", raising=False)
    git("init", "-q")
    assert provenance.git_revision() is None, "a file that is not tracked is installed, not checked out"

    git("add", "provenance.py")
    git("commit", "-qm", "one")
    provenance.git_revision.cache_clear()
    assert provenance.git_revision() == git("rev-parse", "HEAD")

    source.write_text("# changed\n")
    provenance.git_revision.cache_clear()
    assert provenance.git_revision() == git("rev-parse", "HEAD") + "+changes"
