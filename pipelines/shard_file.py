"""The file of a shard: a zip archive of arrays, written and read tile by tile, without pickles (np.load opens it).

Of tile n it holds `n.runs`, `n.sizes`, `n.labels`, `n.scores` (its objects), `n.valid` (a bit a pixel) and
`n.probabilities` (float16, all low bytes before all high ones, then packed by Zstandard). A tile without a valid
pixel has no entry at all. `classes` is the number of classes.

On probabilities of three trained models this leaves 54 to 72 % of the bytes at 2 to 3 s a GB; without the bytes parted
72 to 89 %, and deflate needs 11 to 16 s a GB for as much (benchmarks/README.md, "Scene memory").
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maskformer.masks import MaskSet
from pipelines.predictor import TileResult

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


def read_tiles(path: Path, shapes: Iterable[tuple[int, ...]]) -> Iterator[TileResult]:
    """The tiles of the file, in order, each of its shape (h, w) of `shapes`."""
    with np.load(path, allow_pickle=False) as stored:
        classes, there = int(stored["classes"][0]), set(stored.files)
        for number, shape in enumerate(shapes):
            if f"{number}.valid" in there:
                yield _result(stored, number, shape, classes)
            else:
                yield nothing(shape, classes)


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
    }


def _result(stored: Any, number: int, shape: tuple[int, ...], classes: int) -> TileResult:
    runs, sizes, labels, scores, valid, packed = (
        stored[f"{number}.{name}"] for name in ("runs", "sizes", "labels", "scores", "valid", "probabilities")
    )
    objects = MaskSet(shape, runs, np.concatenate([[0], np.cumsum(sizes)]), labels, scores)
    seen = np.unpackbits(valid, axis=-1, count=shape[-1]).astype(bool)
    return TileResult(objects, _unpack(packed, (classes, *shape)), seen)


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
    entry.compress_type = zipfile.ZIP_STORED if name.endswith("probabilities") else zipfile.ZIP_DEFLATED
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
