"""Greedy colouring of a conflict graph: which objects may share a layer."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from maskformer.runs import offsets_of


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
