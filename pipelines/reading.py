"""Reading a scene ahead of the model: a thread decodes the next tiles while the model is at these.

`scene_reader` opens a plan's scene by blocks, damaged ones tolerated. Within `kept_open` the shards of a plan share one
reader, so that a block which two shards show is decoded once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from pipelines.grid import Tile
from pipelines.scene import ScenePlan, open_scene
from pipelines.sources.blocks import BlockReader
from pipelines.sources.tolerant import TolerantSource

AHEAD = 2  # batches that are read before they are asked for
Losses = dict[tuple[int, int, int, int], str]  # (top, bottom, left, right) of a window → why it could not be read
Read = list[tuple[NDArray, NDArray[np.bool_]]]


@dataclass
class Waiting:
    """Seconds for which the model stood still because its tiles were not read yet."""

    seconds: float = 0.0


@dataclass(frozen=True)
class SceneReader:
    """A plan's scene for the tiles of its grid. `read` never raises for a damaged block: see `lost_in`."""

    blocks: BlockReader
    tolerant: TolerantSource

    def read(self, window: tuple[slice, ...]) -> tuple[NDArray, NDArray[np.bool_]]:
        """Values (C, h, w) and valid (h, w) of a tile's window; tiles are read in row-major order."""
        return self.blocks.read(window)

    def lost_in(self, tiles: Sequence[Tile]) -> Losses:
        """What could not be read of the rows that `tiles` lie in."""
        top = min(tile.window[0].start for tile in tiles)
        bottom = max(tile.window[0].stop for tile in tiles)
        return {window: why for window, why in self.tolerant.lost.items() if window[0] < bottom and window[1] > top}


class _Kept:
    """The reader that shards share within `kept_open`; of one plan at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.key: str | None = None
        self.reader: SceneReader | None = None
        self.stack = ExitStack()


_KEPT = _Kept()


@contextmanager
def kept_open() -> Iterator[None]:
    """Within the block a scene that `scene_reader` opened stays open for the next shard."""
    with _KEPT.lock:
        _KEPT.depth += 1
    try:
        yield
    finally:
        with _KEPT.lock:
            _KEPT.depth -= 1
            if not _KEPT.depth:
                _KEPT.stack.close()
                _KEPT.key = _KEPT.reader = None


@contextmanager
def scene_reader(plan: ScenePlan, adapter: DomainAdapter) -> Iterator[SceneReader]:
    """The plan's scene with the model's channels, by blocks. InputError where it cannot be opened."""
    with ExitStack() as mine:
        with _KEPT.lock:
            if not _KEPT.depth:
                reader = _open(plan, adapter, mine)
            else:
                if _KEPT.key != plan.key:
                    _KEPT.stack.close()
                    _KEPT.key = _KEPT.reader = None
                    _KEPT.reader, _KEPT.key = _open(plan, adapter, _KEPT.stack), plan.key
                assert _KEPT.reader is not None
                reader = _KEPT.reader
        yield reader


def _open(plan: ScenePlan, adapter: DomainAdapter, stack: ExitStack) -> SceneReader:
    tolerant = TolerantSource(stack.enter_context(open_scene(plan, adapter)))
    return SceneReader(BlockReader(tolerant, plan.grid.tiles), tolerant)


def read_ahead(source: Any, groups: Sequence[Sequence[Tile]], waiting: Waiting | None = None) -> Iterator[Read]:
    """What each group of tiles shows of `source`, in order, read by a thread before it is asked for."""
    waiting = waiting or Waiting()
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
        pending: deque[Future[Read]] = deque()
        left = iter(groups)
        try:
            for _ in groups:
                while len(pending) <= AHEAD and (group := next(left, None)) is not None:
                    pending.append(thread.submit(_read, source, group))
                began = time.perf_counter()
                arrays = pending.popleft().result()
                waiting.seconds += time.perf_counter() - began
                yield arrays
        finally:
            for future in pending:  # the caller stopped early, or a read failed
                future.cancel()


def _read(source: Any, tiles: Sequence[Tile]) -> Read:
    return [source.read(tile.window) for tile in tiles]
