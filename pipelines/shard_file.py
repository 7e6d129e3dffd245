"""The file of a shard: a zip archive of arrays, written and read tile by tile, without pickles (np.load opens it).

Of tile n it holds `n.runs`, `n.sizes`, `n.labels`, `n.scores` (its objects), `n.traits` (float16, where there are any),
`n.valid` (a bit a pixel) and `n.probabilities` (float16, all low bytes before all high ones, then packed by Zstandard).
A tile without a valid pixel has no entry at all. `classes` is the number of classes.

On probabilities of three trained models this leaves 54 to 72 % of the bytes at 2 to 3 s a GB; without the bytes parted
72 to 89 %, and deflate needs 11 to 16 s a GB for as much (benchmarks/README.md, "Scene memory").
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskformer.masks import MaskSet
from pipelines.predictor import TileResult

Found = tuple[MaskSet, np.ndarray | None]  # objects of a tile, and their traits

DENSE = ("probabilities", "traits")  # what deflate does not make smaller
FORMAT = 2  # format 1 held all tiles of a shard as one array, not packed
PACKED = 0.75  # bytes kept of one byte of probabilities, for estimates: 0.72 in the worst measured case


def write_tiles(path: Path, results: Iterable[TileResult], classes: int) -> None:
    """Write `results` as they come; one tile at a time is in memory. Equal results give equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, "classes", np.array([classes]))
        for number, result in enumerate(results):
            if result.valid.any():
                for name, array in _arrays(result).items():
                    _add(archive, f"{number}.{name}", array)


def read_tiles(
    path: Path, shapes: Sequence[tuple[int, ...]], wanted: Iterable[int] | None = None
) -> Iterator[TileResult]:
    """The tiles of the file, or the `wanted` ones by number, in order; shapes: (h, w) of all of them."""
    with np.load(path, allow_pickle=False) as stored:
        classes, there = int(stored["classes"][0]), set(stored.files)
        for number in range(len(shapes)) if wanted is None else wanted:
            shape = shapes[number]
            if f"{number}.valid" not in there:
                yield nothing(shape, classes)
                continue
            valid, packed = (stored[f"{number}.{name}"] for name in ("valid", "probabilities"))
            seen = np.unpackbits(valid, axis=-1, count=shape[-1]).astype(bool)
            objects, traits = _objects(stored, there, number, shape)
            yield TileResult(objects, _unpack(packed, (classes, *shape)), seen, traits)


def read_objects(path: Path, shapes: Sequence[tuple[int, ...]]) -> Iterator[Found]:
    """The objects of every tile of the file, and their traits, in order; probabilities are not unpacked."""
    with np.load(path, allow_pickle=False) as stored:
        there = set(stored.files)
        for number, shape in enumerate(shapes):
            known = f"{number}.valid" in there
            yield _objects(stored, there, number, shape) if known else (MaskSet.empty(shape), None)


def nothing(shape: tuple[int, ...], classes: int) -> TileResult:
    """What is predicted where there is no valid pixel."""
    return TileResult(MaskSet.empty(shape), np.zeros((classes, *shape), np.float16), np.zeros(shape, bool))


def _arrays(result: TileResult) -> dict[str, np.ndarray]:
    objects = result.objects
    return {
        "runs": objects.runs,
        "sizes": np.diff(objects.offsets).astype(np.int64),
        "labels": objects.labels,
        "scores": objects.scores,
        "valid": np.packbits(result.valid, axis=-1),
        "probabilities": _pack(result.probabilities),
        **({} if result.traits is None else {"traits": result.traits}),
    }


def _objects(stored: Any, there: set[str], number: int, shape: tuple[int, ...]) -> Found:
    runs, sizes, labels, scores = (stored[f"{number}.{name}"] for name in ("runs", "sizes", "labels", "scores"))
    objects = MaskSet(shape, runs, np.concatenate([[0], np.cumsum(sizes)]), labels, scores)
    return objects, stored[f"{number}.traits"] if f"{number}.traits" in there else None


def _pack(values: np.ndarray) -> np.ndarray:
    halves = np.ascontiguousarray(values, "<f2").reshape(-1, 1).view(np.uint8)
    return np.frombuffer(_codec().compress(np.ascontiguousarray(halves.T), asbytes=True), np.uint8)


def _unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    planes = np.frombuffer(_codec().decompress(packed, 2 * size, asbytes=True), np.uint8).reshape(2, size)
    return np.ascontiguousarray(planes.T).view("<f2").reshape(shape).astype(np.float16, copy=False)


def _codec() -> Any:
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=1)


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy")  # with a date that does not move
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(DENSE) else zipfile.ZIP_DEFLATED
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
