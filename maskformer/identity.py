"""The canonical order of objects and the ids that come from geometry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def first_pixels(runs: NDArray, offsets: NDArray) -> NDArray[np.int64]:
    """(N, ndim) coordinates of each object's first pixel in row-major order; -1 for an empty object."""
    pixels = np.full((len(offsets) - 1, runs.shape[1] - 1), -1, np.int64)
    filled = np.flatnonzero(np.diff(offsets))
    pixels[filled] = runs[offsets[filled], :-1]
    return pixels


def canonical_order(keys: Sequence[NDArray], runs: NDArray, offsets: NDArray, scores: NDArray) -> NDArray[np.int64]:
    """Positions (N,) sorted by `keys` (most important first), then runs, then score."""
    order = np.lexsort(keys[::-1])
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        ranked = key[order]
        same &= ranked[1:] == ranked[:-1]

    def content(number: int) -> tuple[bytes, float]:
        mine = runs[offsets[number] : offsets[number + 1]]
        return mine.astype(">i4").tobytes(), float(scores[number])  # big-endian bytes sort as the numbers do

    for begin, end in stretches(same):  # equal in all keys: rare, compared run by run
        order[begin:end] = sorted(order[begin:end].tolist(), key=content)
    return order


def stable_ids(labels: NDArray, pixels: NDArray, order: NDArray) -> NDArray[np.int64]:
    """63-bit hashes of class, first pixel and, among objects that share both, the rank in canonical
    `order`.
    """
    count = len(labels)
    rank = np.zeros(count, np.int64)
    if count:
        key = np.column_stack([pixels, labels])[order]
        fresh = np.ones(count, bool)
        fresh[1:] = (key[1:] != key[:-1]).any(axis=1)
        position = np.arange(count)
        rank[order] = position - np.maximum.accumulate(np.where(fresh, position, 0))
    mixed = np.zeros(count, np.uint64)
    for part in (labels, *pixels.T, rank):
        mixed = mix(mixed ^ part.astype(np.uint64))
    return (mixed >> np.uint64(1)).astype(np.int64)  # GeoPackage integers are signed


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64 bits."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def stretches(same: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open ranges of positions that are chained by `same` (N - 1,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    return [(int(a), int(b) + 1) for a, b in edges.reshape(-1, 2)]


def merge(
    member: NDArray, groups: int, labels: NDArray, areas: NDArray, scores: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Label and score of every group: the class of its largest member (the lower one among equals), and the score
    weighted by area (the plain mean where all members are empty). Sums are made in the order of the members.
    """
    largest = np.lexsort((labels, -areas, member))
    first = np.ones(len(member), bool)
    first[1:] = np.diff(member[largest]) > 0
    weight = areas.astype(np.float64)
    hollow = np.bincount(member, weight, groups) == 0
    weight[hollow[member]] = 1.0
    score = np.bincount(member, weight * scores, groups) / np.bincount(member, weight, groups)
    return labels[largest[first]], score.astype(np.float32)
