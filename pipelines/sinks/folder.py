"""All or nothing on disk: files and folders that appear under their final name only when they are complete.

Everything is written beside its target under a hidden name that carries host and process id, and renamed at the end:
`.{name}.partial-{host}-{pid}-{n}` is work in progress, `.{name}.replaced-{host}-{pid}-{n}` an earlier output in the
moment it is swapped out. What a killed process left is cleaned (or, for `replaced`, put back) by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import psutil

from adapters.errors import InputError

log = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # of the disk, the user, the file: no room
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
# Libraries over GDAL raise their own errors, without an errno; less room than this says what really happened.
NO_ROOM_BYTES = 1 << 20
ATTEMPTS = 100  # at a folder that other runs make and remove

HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:32] or "localhost"
_numbers = itertools.count()


class OutputFolder:
    """One scene's folder `out/stem`, written in a temporary folder beside it and renamed by `commit()`.

        with OutputFolder(out, "scene") as folder:
            (folder.path / "run.json").write_text(...)
            final = folder.commit()

    Where `out/stem` exists, `commit` takes `stem-2`, `stem-3`, ... With `overwrite` the old folder is swapped out at
    commit, and until then untouched; a file of that name is never replaced. Leaving the block without `commit` removes
    everything that was written. InputError (one line, naming `out`) where it cannot be written, a file is in the way
    or the disk is full.
    """

    def __init__(self, out: str | Path, stem: str, overwrite: bool = False) -> None:
        if not stem or stem in {".", ".."} or "/" in stem or "\0" in stem:
            raise ValueError(f"expected a file name for the output folder, got {stem!r}")
        self.out = Path(out)
        self.stem = stem
        self.overwrite = overwrite
        self.path = self.out / _temporary_name(stem, "partial")
        self.final: Path | None = None
        self._made: list[Path] = []

    def __enter__(self) -> OutputFolder:
        with _readable_errors(self.out):
            self._made = _make_folders(self.out)
            _clean_stale(self.out, self.stem)
            target = self.out / self.stem
            if self.overwrite and os.path.lexists(target) and not target.is_dir():
                raise InputError(f"{target}: a file is in the way, expected a folder or nothing")
            self.path.mkdir()
        return self

    def commit(self) -> Path:
        """Give the folder its final name and return it."""
        if self.final is not None:
            raise RuntimeError(f"{self.final} is already committed")
        with _readable_errors(self.out):
            self.final = self._swap() if self.overwrite else self._rename()
        return self.final

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.final is None:
            full = error is not None and _is_full(error, self.out)  # asked before the room is given back
            shutil.rmtree(self.path, ignore_errors=True)
            for made in reversed(self._made):
                with contextlib.suppress(OSError):  # somebody else's file in it: then it stays
                    made.rmdir()
            if full:
                raise InputError(f"{self.out}: the disk is full, nothing was written") from error
            if isinstance(error, InputError) and str(self.path) in str(error):  # nobody knows the hidden name
                raise InputError(str(error).replace(str(self.path), str(self.out / self.stem))) from error

    def _rename(self) -> Path:
        for number in itertools.count(1):
            target = self.out / (self.stem if number == 1 else f"{self.stem}-{number}")
            if os.path.lexists(target):
                continue
            try:
                self.path.rename(target)
            except OSError as error:  # another process was quicker with this name
                if error.errno not in {errno.ENOTEMPTY, *IN_THE_WAY}:
                    raise
            else:
                return target
        raise AssertionError("unreachable")

    def _swap(self) -> Path:
        target = self.out / self.stem
        if not os.path.lexists(target):
            self.path.rename(target)
            return target
        if not target.is_dir():
            raise InputError(f"{target}: a file is in the way, expected a folder or nothing")
        old = self.out / _temporary_name(self.stem, "replaced")
        target.rename(old)
        try:
            self.path.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True) if not old.is_symlink() else old.unlink()
        return target


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` (same suffix); it replaces `path` when the block ends without an error.

    Missing parent folders are made. On an error nothing is left, side files of the same name included, and an earlier
    file stays as it was. InputError where the folder cannot be written, something is in the way or the disk is full.
    """
    target = Path(path)
    with _readable_errors(target):
        made = _make_folders(target.parent)
        _clean_stale(target.parent, target.name)
        if target.is_dir():
            raise InputError(f"{target}: a folder is in the way, expected a file or nothing")
    temporary = temporary_beside(target)
    try:
        with _readable_errors(target):  # the file system says at the first write whether it takes any
            temporary.touch()
            temporary.unlink()
        try:
            yield temporary
            with _readable_errors(target):
                temporary.replace(target)
        except BaseException as error:
            if _is_full(error, target.parent):
                raise InputError(f"{target}: the disk is full, nothing was written") from error
            raise
    except BaseException:
        for left in target.parent.glob(f"{_escape(temporary.name)}*"):
            left.unlink()
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Make `folder` and wait until no other run is in it; the folder itself is locked, so no lock file is left behind.

    Where nothing came of the run, the folders it made are removed. InputError where the folder cannot be written.
    """
    folder = Path(folder)
    made: list[Path] = []
    with _readable_errors(folder):
        for attempt in itertools.count(1):
            try:
                made = _make_folders(folder) or made
                handle = os.open(folder, os.O_RDONLY)
            except (FileNotFoundError, FileExistsError):  # another run removed it, or a parent, in between
                if attempt == ATTEMPTS:
                    raise
                continue
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(folder, handle):
                break
            os.close(handle)  # the one before us removed the folder that we waited for
    try:
        with OutputFolder(folder, "unused"):  # says in one readable line what is wrong with the folder
            pass
        yield
    finally:
        for one in reversed(made):  # removed under the lock: who waits for it sees that, and makes another
            with contextlib.suppress(OSError):
                one.rmdir()
        os.close(handle)


def _is_at(folder: Path, handle: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), folder.stat())
    return False


def temporary_beside(path: str | Path) -> Path:
    """A hidden name beside `path`, with its suffix, that the next run cleans away should this process be killed."""
    target = Path(path)
    return target.parent / (_temporary_name(target.name, "partial") + target.suffix)


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary_name(name: str, state: str) -> str:
    return f"{_prefix(name)}{state}-{HOST}-{os.getpid()}-{next(_numbers)}"


def _prefix(name: str) -> str:
    """Hidden, unique to the name, and never longer than a file system allows (255 bytes)."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f".{os.fsencode(name)[:64].decode(errors='ignore')}.{digest}."


def _clean_stale(folder: Path, name: str) -> None:
    """Remove what dead processes of this host left of `name`; put back an output they had swapped out."""
    prefix = _prefix(name)
    pattern = re.compile(re.escape(prefix) + rf"(partial|replaced)-{re.escape(HOST)}-(\d+)-\d+")
    for entry in sorted(folder.glob(f"{_escape(prefix)}*")):
        found = pattern.match(entry.name)
        if not found or psutil.pid_exists(int(found[2])):
            continue
        if found[1] == "replaced" and not os.path.lexists(folder / name):
            log.warning("%s: put back, a killed run had swapped it out", folder / name)
            entry.rename(folder / name)
        elif entry.is_dir() and not entry.is_symlink():
            log.info("%s: removed, left by a killed run", entry)
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` and its parents; returns those that were new, outermost first."""
    missing = list(itertools.takewhile(lambda one: not one.exists(), [folder, *folder.parents]))[::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _is_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, InputError) or not isinstance(error, Exception):
        return False
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return folder.exists() and shutil.disk_usage(folder).free < NO_ROOM_BYTES


@contextlib.contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise InputError(f"{path}: the disk is full, nothing was written") from error
        if error.errno in REFUSED:
            raise InputError(f"{path}: cannot write here ({error.strerror}), expected a writable folder") from error
        if error.errno in IN_THE_WAY:
            raise InputError(f"{path}: a file is in the way of this folder") from error
        raise InputError(f"{path}: cannot write here ({error.strerror or error})") from error
