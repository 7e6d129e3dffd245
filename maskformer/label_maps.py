"""Label maps in and out: pictures in which every pixel names one object."""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import NDArray

from maskformer.runs import Ints, expand, offsets_of

PAINT_PIXELS = 1 << 24  # pixels expanded at once while painting: 128 MiB of indices


def read(values: NDArray) -> tuple[NDArray, Ints, Ints, Ints, Ints]:
    """Values (N,) of an integer map other than 0, and its runs sorted by value: owner, line, start, stop."""
    width = values.shape[-1]
    flat = values.reshape(math.prod(values.shape[:-1]), width)
    edge = np.ones((len(flat), width + 1), bool)
    edge[:, 1:-1] = flat[:, 1:] != flat[:, :-1]
    line, column = np.divmod(np.flatnonzero(edge), width + 1)
    begin = np.flatnonzero(column < width)
    line, start, stop = line[begin], column[begin], column[1:][begin] if width else column[begin]
    value = flat[line, start]
    kept = np.flatnonzero(value != 0)
    names, owner = np.unique(value[kept], return_inverse=True)
    order = np.argsort(owner, kind="stable")
    kept = kept[order]
    return names, owner[order], line[kept], start[kept], stop[kept]


def paint(shape: tuple[int, ...], starts: Ints, stops: Ints, offsets: Ints, values: NDArray) -> NDArray[np.int32]:
    """int32 map of objects given as flat runs (see `maskformer.runs`), each with its value.

    Later ones on top.
    """
    canvas = np.zeros(math.prod(shape), np.int32)
    starts = starts - starts // (shape[-1] + 1)  # without the free position behind each line
    lengths = stops - stops // (shape[-1] + 1) - starts
    owner = np.repeat(np.arange(len(values)), np.diff(offsets))
    painted = np.cumsum(lengths)
    done = 0
    while done < len(starts):
        before = painted[done - 1] if done else 0
        upto = max(done + 1, int(np.searchsorted(painted, before + PAINT_PIXELS)))
        part = slice(done, upto)
        # of equal indices numpy keeps the last value
        canvas[expand(starts[part], lengths[part])] = np.repeat(values[owner[part]], lengths[part])
        done = upto
    return canvas.reshape(shape)


def colour_graph(i: NDArray, j: NDArray, count: int) -> NDArray[np.int64]:
    """Colours (count,) so that no pair (i, j) (given both ways) shares one; DSATUR."""
    colour = np.full(count, -1, np.int64)
    touched = np.unique(i)
    colour[np.setdiff1d(np.arange(count), touched)] = 0
    order = np.argsort(i, kind="stable")
    offsets = offsets_of(i[order], count)
    neighbours = j[order]
    degree = np.diff(offsets)
    taken: dict[int, set[int]] = {int(n): set() for n in touched}
    heap = [(0, -int(degree[n]), int(n)) for n in touched]
    heapq.heapify(heap)
    while heap:
        saturation, _, node = heapq.heappop(heap)
        if colour[node] >= 0 or -saturation != len(taken[node]):
            continue  # an older entry of this node
        chosen = 0
        while chosen in taken[node]:
            chosen += 1
        colour[node] = chosen
        for other in neighbours[offsets[node] : offsets[node + 1]].tolist():
            if colour[other] < 0 and chosen not in taken[other]:
                taken[other].add(chosen)
                heapq.heappush(heap, (-len(taken[other]), -int(degree[other]), other))
    return colour
