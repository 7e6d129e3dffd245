"""Objects as a stack of label rasters, lossless: in no band do two objects overlap, so every object keeps every pixel.

Value n is row n (from 1) of objects.parquet, 0 is nothing. As many bands as the deepest pile of objects needs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.sinks.cog import BLOCK, CogSink, HasPlace, Layout


def write_layers(path: Path, objects: MaskSet, geometry: HasPlace | None) -> Path:
    """Write `objects` in canonical order to `path` (.tif, uint32, one band a layer; at least one)."""
    objects = objects.canonical()
    layer = objects.layer_numbers()
    height, width = objects.shape
    bands = int(layer.max(initial=0)) + 1
    with CogSink(path, (height, width), geometry, Layout("uint32", bands)) as sink:
        for top in range(0, height, BLOCK):
            window = (slice(top, min(top + BLOCK, height)), slice(0, width))
            part, numbers = objects.crop_indexed(window)
            sink.write(window, _stack(part, numbers + 1, layer[numbers], bands))
        sink.commit()
    return path


def read_layers(path: Path, labels: NDArray[np.int64], scores: NDArray[np.float32] | None = None) -> MaskSet:
    """The set that `write_layers` wrote; classes (and scores) of its rows come from the table beside it.

    InputError where the raster has more objects than there are labels.
    """
    with rasterio.open(path) as file:
        shape, stacks = (file.height, file.width), [file.read(band) for band in file.indexes]
    present = [MaskSet.from_label_map(stack.astype(np.int64)) for stack in stacks]
    values = [np.unique(stack[stack > 0]).astype(np.int64) for stack in stacks]
    numbers = np.concatenate(values) - 1
    if len(numbers) and numbers.max() >= len(labels):
        raise InputError(f"{path}: has object {int(numbers.max()) + 1}, but the table has {len(labels)} rows")
    every = MaskSet.concatenate(present) if present else MaskSet.empty(shape)
    order = np.argsort(numbers)
    found = every[order].with_labels(labels[numbers[order]])
    return found if scores is None else found.with_scores(scores[numbers[order]])


def _stack(part: MaskSet, values: NDArray[np.int64], layer: NDArray[np.int64], bands: int) -> NDArray[np.uint32]:
    """(bands, h, w): the objects of each layer with their values."""
    table = np.concatenate(([0], values)).astype(np.uint32)
    stack = np.zeros((bands, *part.shape), np.uint32)
    for band in range(bands):
        chosen = np.flatnonzero(layer == band)
        if len(chosen):
            local = part[chosen].to_label_map()
            stack[band] = np.concatenate(([0], table[1:][chosen]))[local]
    return stack
