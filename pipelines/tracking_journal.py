"""What a run tells MLflow, on this disk first: one folder a run, one JSON line an event, sent from there.

    <spool>/<key>/ run.json      whose run it is: address (without password), experiment, name, tags, run id once known
                   events.jsonl  what was told, in order
                   sent          how many bytes of it MLflow has taken
                   files/        the files that events speak of
                   lock          held by the process that writes or sends; the kernel drops it when that is killed

The folder goes when all of it was taken. Writing is one `write` a line without a sync: it outlives the process, not a
power cut. Secrets never enter: texts pass through `json_logs.redacted`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.json_logs import redacted
from pipelines.samples import cache_folder

log = logging.getLogger(__name__)

HEADER, EVENTS, SENT, FILES, LOCK = "run.json", "events.jsonl", "sent", "files", "lock"
CHUNK = 1 << 20  # bytes of events read at a time
COMPACT = 4 << 20  # a journal of which all was sent is emptied at this size; a day of training writes 200 MB
TEXTS = {".json", ".jsonl", ".yaml", ".yml", ".html", ".txt", ".md", ".csv", ".log"}
LARGEST_COPY = 64 << 20  # bytes; our reports have up to 20 MB, weights are not changed but replaced


class Event(NamedTuple):
    """`end` is the position behind its line; `said` the line."""

    end: int
    said: dict[str, Any]


def spool_folder() -> Path:
    """$MASKBRIDGE_SPOOL, else `tracking` in maskbridge's cache folder."""
    named = os.environ.get("MASKBRIDGE_SPOOL")
    return Path(named) if named else cache_folder().parent / "tracking"


class Journal:
    """One run's folder, held by this process. Made by `open_journal`; safe to use from several threads."""

    def __init__(self, folder: Path, handle: int) -> None:
        self.folder = folder
        self._handle = handle
        self._guard = threading.Lock()
        self._full = False
        (folder / FILES).mkdir(exist_ok=True)
        self._events = os.open(folder / EVENTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._drop_half_a_line()
        self.header: dict[str, Any] = _read_json(folder / HEADER) or {}
        self.sent = min(int(_read_json(folder / SENT) or 0), self.size)

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def size(self) -> int:
        return os.fstat(self._events).st_size

    @property
    def is_sent(self) -> bool:
        return self.sent >= self.size

    def describe(self, **values: Any) -> None:
        """Keep more about the run itself."""
        self.header |= values
        _write_json(self.folder / HEADER, self.header)

    def append(self, kind: str, **values: Any) -> None:
        """Write an event. A disk that takes none costs one warning, not the run."""
        line = json.dumps({"kind": kind, **_clean(values)}, ensure_ascii=False, allow_nan=False) + "\n"
        with self._guard:
            try:
                os.write(self._events, line.encode())
            except OSError as error:
                if not self._full:
                    log.warning("%s takes nothing more for MLflow: %s", self.folder, error.strerror or error)
                self._full = True

    def keep(self, path: Path, *, verbatim: bool = False) -> str:
        """Keep a file or a folder as it is now; returns its place in the journal. OSError where that cannot be.

        Secrets in texts are blotted out, unless it has to stay `verbatim`, as what has a hash does.
        """
        keep_one = link_or_copy if verbatim else _without_secrets
        place = Path(FILES) / str(time.monotonic_ns()) / path.name
        target = self.folder / place
        target.parent.mkdir()
        if path.is_dir():
            shutil.copytree(path, target, copy_function=keep_one)
        else:
            keep_one(str(path), str(target))
        return str(place)

    def read(self) -> list[Event]:
        """The next events that were not sent; none at the end."""
        chunk, size = b"", CHUNK
        while b"\n" not in chunk:
            chunk = os.pread(self._events, size, self.sent)
            if len(chunk) < size:
                break
            size *= 4
        found, position = [], self.sent
        for line in chunk.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            position += len(line)
            found.append(Event(position, _parsed(line)))
        return found

    def mark(self, end: int) -> None:
        """Everything before `end` was taken."""
        self.sent = end
        _write_json(self.folder / SENT, end)
        with self._guard:
            if self.is_sent and end > COMPACT:
                os.ftruncate(self._events, 0)  # before the mark: a mark behind the end counts as the end
                self.sent = 0
                _write_json(self.folder / SENT, 0)

    def forget(self, place: str) -> None:
        """A kept file was taken."""
        shutil.rmtree((self.folder / place).parent, ignore_errors=True)

    def last_told(self) -> float:
        """When the last event was written, seconds since 1970."""
        return os.fstat(self._events).st_mtime

    def close(self, *, discard: bool) -> None:
        """Let go; with `discard` all of it was taken, and the folder goes."""
        if discard:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._events)
        os.close(self._handle)

    def _drop_half_a_line(self) -> None:
        """A process killed while it wrote leaves part of a line, to which the next event would be glued."""
        size = self.size
        tail = os.pread(self._events, min(size, CHUNK), max(0, size - CHUNK))
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._events, size - (len(tail) - tail.rfind(b"\n") - 1))


def open_journal(key: str) -> Journal | None:
    """The journal of that key, new or left by an earlier process; None where a living process holds it.

    OSError where the spool cannot be written.
    """
    folder = spool_folder() / key
    while True:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # whoever had it has just finished
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), (folder / LOCK).stat()):
                return Journal(folder, handle)
        os.close(handle)


def left_behind() -> Iterator[Journal]:
    """Journals that no living process holds, oldest first. Close each."""
    spool = spool_folder()
    if not spool.is_dir():
        return
    folders = [folder for folder in spool.iterdir() if (folder / HEADER).is_file()]
    for folder in sorted(folders, key=lambda one: one.stat().st_mtime if one.exists() else 0.0):
        if not (folder / HEADER).is_file():
            continue
        journal = open_journal(folder.name)
        if journal is None:
            continue
        if journal.header:
            yield journal
        else:  # it was finished in between, and opening made the folder anew
            journal.close(discard=True)


def link_or_copy(source: str, target: str) -> str:
    """The same file under another name; a copy where the file system has no links or is another one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _without_secrets(source: str, target: str) -> str:
    """A copy, so that what is written into the file later is not sent; of a large file a link.

    A text that holds a secret is written without it.
    """
    file = Path(source)
    if file.stat().st_size > LARGEST_COPY:
        return link_or_copy(source, target)
    if file.suffix.lower() in TEXTS:
        text = file.read_bytes().decode("utf-8", errors="surrogateescape")
        clean = redacted(text)
        if clean != text:
            Path(target).write_bytes(clean.encode("utf-8", errors="surrogateescape"))
            return target
    shutil.copyfile(source, target)
    return target


def _clean(value: Any) -> Any:
    """Without secrets, and with NaN and infinities as words, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"kind": "damaged"}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)
