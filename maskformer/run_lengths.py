"""COCO run lengths: the compressed strings of pycocotools and its kin.

Format: github.com/cocodataset/cocoapi, common/maskApi. Column-major counts that begin with zeros; from the
fourth on as the difference to the count two before; five bits a character, least first, bit 6 says that
more follow, the last character's bit 5 is the sign; plus 48.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from maskformer.runs import Ints, expand, merge, offsets_of, segment_sums


def encode(shape: tuple[int, ...], owners: Ints, starts: Ints, stops: Ints, count: int) -> list[dict]:
    """`{"size": [h, w], "counts".

    Str}` of `count` objects given as flat runs sorted by owner (see `maskformer.runs`).
    """
    height, width = shape
    row, column = np.divmod(expand(starts, stops - starts), width + 1)
    pixel = column * height + row
    owner, start, stop = merge(np.repeat(owners, stops - starts), pixel, pixel + 1, height * width + 1)
    edges = np.column_stack([start, stop]).reshape(-1)
    edge_owner = np.repeat(owner, 2)
    full = np.concatenate([edges, np.full(count, height * width)])  # the last count of each object ends the picture
    full_owner = np.concatenate([edge_owner, np.arange(count)])
    order = np.argsort(full_owner, kind="stable")
    full, full_owner = full[order], full_owner[order]
    first = np.ones(len(full), bool)
    first[1:] = full_owner[1:] != full_owner[:-1]
    counts = np.where(first, full, np.diff(full, prepend=0))
    needed = (counts > 0) | (full < height * width) | first
    texts = encode_counts(counts[needed], offsets_of(full_owner[needed], count))
    return [{"size": [height, width], "counts": text} for text in texts]


def decode(rles: Sequence[Mapping], shape: Sequence[int] | None = None) -> tuple[tuple[int, int], Ints, Ints, Ints]:
    """Canvas, owners, flat starts and flat stops of `{"size", "counts"}` with counts as str, bytes or plain
    list.
    """
    sizes = {tuple(int(n) for n in one["size"]) for one in rles}
    sizes |= {tuple(int(n) for n in shape)} if shape is not None else set()
    if len(sizes) != 1 or len(next(iter(sizes))) != 2:
        raise ValueError(f"expected run lengths of one canvas (height, width), got {sorted(sizes)}")
    height, width = sizes.pop()
    owners, starts, stops = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number, one in enumerate(rles):
        counts = one["counts"]
        counts = decode_counts(counts) if isinstance(counts, str | bytes) else np.asarray(counts, np.int64)
        if (counts < 0).any() or counts.sum() != height * width:
            raise ValueError(
                f"expected counts that add up to {height} x {width}, got {counts.sum()} in object {number}"
            )
        edges = np.cumsum(counts)
        edges = edges[: len(edges) // 2 * 2]
        starts.append(edges[0::2])
        stops.append(edges[1::2])
        owners.append(np.full(len(edges) // 2, number))
    start, length = np.concatenate(starts), np.concatenate(stops) - np.concatenate(starts)
    column, row = np.divmod(expand(start, length), max(height, 1))
    flat = row * (width + 1) + column
    return (height, width), np.repeat(np.concatenate(owners), length), flat, flat + 1


def encode_counts(counts: Ints, offsets: Ints) -> list[str]:
    """Compressed COCO strings of the run lengths `counts[offsets[i]:offsets[i + 1]]`."""
    position = np.arange(len(counts)) - np.repeat(offsets[:-1], np.diff(offsets))
    rest = counts.copy()
    late = np.flatnonzero(position > 2)
    rest[late] -= counts[late - 2]
    characters: list[NDArray] = []
    alive: list[NDArray] = []
    more = np.ones(len(rest), bool)
    while more.any():
        alive.append(more)
        low = rest & 31
        rest = rest >> 5
        unfinished = np.where(low & 16, rest != -1, rest != 0)
        characters.append((low + 32 * unfinished + 48).astype(np.uint8))
        more = more & unfinished
    if not characters:
        return [""] * (len(offsets) - 1)
    keep = np.stack(alive, axis=1)
    text = np.stack(characters, axis=1)[keep].tobytes().decode("ascii")
    ends = segment_sums(keep.sum(axis=1), offsets).cumsum()
    return [text[start:stop] for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


def decode_counts(text: str | bytes) -> Ints:
    """Run lengths of one compressed COCO string; ValueError where it is not one."""
    raw = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    if len(raw) and (raw.min() < 0 or raw.max() > 63 or raw[-1] & 32):
        raise ValueError("expected a compressed COCO string (characters 48..111, last one closed), got other bytes")
    last = np.flatnonzero((raw & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    place = np.arange(len(raw)) - np.repeat(first, last - first + 1)
    if len(place) and place.max() > 11:
        raise ValueError("expected a compressed COCO string, got a number of more than 60 bits")
    digits = (raw & 31) << (5 * place)
    values = np.add.reduceat(digits, first) if len(first) else digits
    values = values - np.where(raw[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    for parity in (
        3,
        4,
    ):  # undo the differences: counts 1, 3, 5, ... and 2, 4, 6, ... each add up on their own
        values[parity - 2 :: 2] = np.cumsum(values[parity - 2 :: 2])
    return values
