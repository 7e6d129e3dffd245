"""The folder of a plan's shards, `out/.shards/<stem>-<key>`, shared by all runs of that plan and removed by the last.

Two runs of one plan may meet there: somebody repeats the command, a schedule overlaps itself, a killed run is resumed
while a worker of it still lives. Each holds a shared lock on the folder for as long as it needs the shards, and only
who gets it alone removes it. A shard is computed under a lock of its own, so nobody does another one's work again.
The kernel drops the locks of a killed process.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.errors import InputError
from pipelines.scene import ScenePlan

log = logging.getLogger(__name__)

SHARDS = ".shards"
LOCK = ".lock"  # suffix of the files that a shard's worker locks
ATTEMPTS = 100  # at a folder that other runs make and remove


class WorkFolder:
    """A held folder: `path` is there until `release`. Made by `hold`."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle: int | None = handle

    def release(self, *, discard: bool) -> None:
        """Let go. With `discard` the shards are removed, unless another run still holds them; then it removes them."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        try:
            if discard and _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(self.path, ignore_errors=True)
        finally:
            os.close(handle)
        if discard:
            with suppress(OSError):  # another scene's shards may be there, or come at this very moment
                self.path.parent.rmdir()


def work_path(plan: ScenePlan, out: str | Path) -> Path:
    """Where the shards of this very plan lie, whether they do or not."""
    return Path(out) / SHARDS / f"{plan.stem}-{plan.key[:16]}"


def hold(plan: ScenePlan, out: str | Path) -> WorkFolder:
    """Make the plan's folder where it is not there, and keep it from being removed. InputError where it cannot be."""
    path = work_path(plan, out)
    for attempt in itertools.count(1):
        try:
            path.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # removed in between, by a run that ended
            if attempt == ATTEMPTS:
                raise
            continue
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror})") from None
        _lock(handle, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return WorkFolder(path, handle)
        os.close(handle)  # the folder we waited for was removed: make another
    raise AssertionError("unreachable")


def work_folder(plan: ScenePlan, out: str | Path) -> Path:
    """The plan's folder, made where it is not there and held by nobody."""
    work = hold(plan, out)
    work.release(discard=False)
    return work.path


@contextmanager
def held(plan: ScenePlan, out: str | Path) -> Iterator[WorkFolder]:
    """`hold` for a block. Shards stay where the block fails or does not release the folder itself: they are resumed.

    A folder in which not one was finished is removed.
    """
    work = hold(plan, out)
    try:
        yield work
    finally:
        with suppress(OSError):  # released within the block, and gone
            nothing = not any(file.name.startswith("shard-") and file.suffix != LOCK for file in work.path.iterdir())
            work.release(discard=nothing)
        work.release(discard=False)


@contextmanager
def alone_with(work: Path, number: int) -> Iterator[None]:
    """Wait until nobody else computes shard `number`."""
    handle = os.open(work / f"shard-{number:04d}{LOCK}", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, kind: int) -> bool:
    """Whether the lock was got. A file system without locks gives them all: then runs of one plan must not overlap."""
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("no locks on this file system (%s): runs of one plan must not overlap there", error.strerror)
    return True
