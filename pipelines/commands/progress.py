"""Progress of long work on stderr: a bar with an ETA on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import typer

PLAIN_EVERY_S = 5.0  # often enough to see that it lives, seldom enough for a log file


class Progress:
    """Callable `(stage, done, total, **notes)`; `total` in the units of `done` (tiles, steps, s) or None.

    stdout stays free for results. The first plain line comes after `PLAIN_EVERY_S`, so that short work, and
    work that fails at once, says nothing but its result.
    """

    def __init__(self, *, terminal: bool | None = None, every: float = PLAIN_EVERY_S) -> None:
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.every = every
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._began: dict[str, float] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if self.terminal:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                SpinnerColumn,
                TaskProgressColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[notes]}"),
                console=Console(stderr=True),
                transient=False,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: float = 0, total: float | None = None, **notes: object) -> None:
        """Report that `stage` has done `done` of `total`; `notes` are shown behind (loss=0.41)."""
        text = "  ".join(f"{name} {_short(value)}" for name, value in notes.items())
        now = time.monotonic()
        began = self._began.setdefault(stage, now)
        if self._bar is not None:
            task = self._tasks.get(stage)
            if task is None:
                task = self._tasks[stage] = self._bar.add_task(stage, total=total, notes=text)
            self._bar.update(task, completed=done, total=total, notes=text)
        elif now - self._last_line >= self.every:
            self._last_line = now
            typer.echo(plain_line(stage, done, total, now - began, text), err=True)


def plain_line(stage: str, done: float, total: float | None, seconds: float, notes: str = "") -> str:
    """One line for a log, for example `tiles  12/40  30 %  0:12 elapsed  about 0:28 left  loss 0.41`."""
    parts = [stage, f"{_short(done)}/{_short(total)}" if total else _short(done)]
    if total:
        parts.append(f"{100 * done / total:.0f} %")
    parts.append(f"{clock(seconds)} elapsed")
    if total and 0 < done < total:
        parts.append(f"about {clock(seconds * (total - done) / done)} left")
    return "  ".join([*parts, notes]).rstrip()


def clock(seconds: float) -> str:
    """`0:07`, `12:05`, `1:02:03`."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _short(value: object) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:.0f}" if isinstance(value, (int, float)) else str(value)
