"""A volume small enough for a page: scan and objects on a coarser grid, packed as pictures of slices side by side.

The scan is JPEG, the numbers of the objects PNG: every browser unpacks both, and 12 million voxels take 2 to 3 MB.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapters.base import DomainAdapter
from maskformer.masks import MaskSet
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.resampling import Resampling, plan_resampling
from pipelines.volumes.source import VolumeSource

# Columns run to the patient's left, rows to the back, slices to the feet: the right is on the left of the screen.
ORIENTATION = "LPI"
VOXELS = 12_000_000  # of the page's grid; browsers of phones refuse canvases of more than 16 million pixels
SIDE = 512  # voxels of an axis at most
PICTURES = 3  # channels shown
LAYERS = 4  # of overlapping objects
QUALITY = 82
_BLOCK = 8  # of JPEG: slices must not share one
_TAIL = 0.5  # percent


@dataclass(frozen=True)
class Picture:
    """One channel, or one window of it, as the page shows it: grey 0 is `low`, 255 is `high`."""

    name: str
    low: float
    high: float
    address: str


@dataclass(frozen=True)
class Atlas:
    """How slices lie in a picture: `columns` side by side, each `width` x `height` pixels of which nx x ny are used."""

    columns: int
    width: int
    height: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> Atlas:
        """For a volume (slices, rows, columns)."""
        depth, rows, columns = shape
        width, height = (-(-n // _BLOCK) * _BLOCK for n in (columns, rows))
        across = max(1, min(depth, round(math.sqrt(depth * height / width))))
        return cls(across, width, height)


def page_grid(geometry: VolumeGeometry) -> Resampling:
    """The way to the page's grid: axes left, back, foot; no finer than the scan's, VOXELS at most."""
    turned = plan_resampling(geometry, ORIENTATION)
    fine = turned.target.spacing
    coarse = max(f * n / SIDE for f, n in zip(fine, turned.target.shape))
    while True:
        spacing = [max(f, coarse) for f in fine]
        found = plan_resampling(geometry, ORIENTATION, spacing)
        if math.prod(found.target.shape) <= VOXELS:
            return found
        coarse = max(coarse, min(spacing)) * 1.03


def pictures(source: VolumeSource, adapter: DomainAdapter, grid: Resampling) -> list[Picture]:
    """The scan as the model's channels see it: its windows, or half a percent cut at each end."""
    result: list[Picture] = []
    values, _ = source.read()
    seen: dict[tuple[float, float, int], None] = {}
    for number, channel in enumerate(adapter.channels):
        if source.imputed[number] or len(result) == PICTURES:
            continue
        small = _to_page(grid.forward(values[number]))
        clip = channel.clip
        if clip is None or (adapter.volume is not None and adapter.volume.intensity == "volume"):
            low, high = (float(v) for v in np.percentile(small, [_TAIL, 100 - _TAIL]))
        else:
            low, high = clip
        high = high if high > low else low + 1
        same = low, high, hash(small[:: max(1, len(small) // 4)].tobytes())
        if same in seen:
            continue
        seen[same] = None
        grey = np.clip((small - low) * (255 / (high - low)) + 0.5, 0, 255).astype(np.uint8)
        result.append(Picture(channel.name, low, high, _jpeg(grey)))
    return result


def object_layers(objects: MaskSet, grid: Resampling) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """(picture of numbers, numbers of the objects in it) of each of up to LAYERS layers without overlaps.

    Red and green are the object's number + 1 in the layer, low byte first. A lesion too small for the grid keeps one
    voxel.
    """
    moved = grid.forward_objects(objects)
    layer = moved.layer_numbers()
    for number in range(min(int(layer.max(initial=-1)) + 1, LAYERS)):
        chosen = np.flatnonzero(layer == number)
        painted = _to_page(moved[chosen].to_label_map())
        yield _png(painted), chosen


def class_layer(labels: NDArray, grid: Resampling) -> str:
    """The class map as a picture of numbers."""
    return _png(_to_page(grid.forward(labels, order=0)))


def _to_page(volume: NDArray) -> NDArray:
    """(x, y, z) as (slice, row, column)."""
    return np.ascontiguousarray(volume.transpose(2, 1, 0))


def _sheet(volume: NDArray, fill_edges: bool) -> NDArray:
    """Slices side by side; what is left over of a cell repeats the edge, or is 0."""
    atlas = Atlas.of(volume.shape)
    depth, rows, columns = volume.shape
    lines = -(-depth // atlas.columns)
    sheet = np.zeros((lines * atlas.height, atlas.columns * atlas.width), volume.dtype)
    pad = ((0, atlas.height - rows), (0, atlas.width - columns))
    for number, plane in enumerate(volume):
        top, left = number // atlas.columns * atlas.height, number % atlas.columns * atlas.width
        cell = np.pad(plane, pad, mode="edge") if fill_edges else np.pad(plane, pad)
        sheet[top : top + atlas.height, left : left + atlas.width] = cell
    return sheet


def _jpeg(grey: NDArray[np.uint8]) -> str:
    raw = io.BytesIO()
    Image.fromarray(_sheet(grey, True)).save(raw, "JPEG", quality=QUALITY, optimize=True)
    return _address("jpeg", raw.getvalue())


def _png(numbers: NDArray) -> str:
    sheet = _sheet(numbers.astype(np.uint16), False)
    rgb = np.stack([sheet & 255, sheet >> 8, np.zeros_like(sheet)], axis=-1).astype(np.uint8)
    raw = io.BytesIO()
    Image.fromarray(rgb).save(raw, "PNG", compress_level=6)
    return _address("png", raw.getvalue())


def _address(kind: str, raw: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"
