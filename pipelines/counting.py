"""Counting one picture of any size: every crop's queries, stitched objects beside a count no threshold decides.

Two counts, and why they are exact on tiles:

- `count`: the objects kept after stitching. Tiles of a truth set give the truth's count back (the stitching law).
- `expected`: the sum of p(object) over all queries, each owned by the one crop in whose core (`Grid.cores`, half-open)
  its mask's centroid lies, so nobody on a seam is counted twice or lost where an object's extent is at most half the
  overlap.

A crop of whose queries nearly all are taken may have more objects than queries: it is cut into four and looked at again
(down to `smallest` pixels of side); what is still full is reported, with the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapters.base import DomainAdapter
from maskformer import inference
from maskformer.masks import MaskSet
from maskformer.prediction import STRIDE, DensePrediction, Prediction
from pipelines.assembly import limit
from pipelines.config import PredictOptions
from pipelines.counting_metrics import centroids
from pipelines.grid import Grid, Window
from pipelines.predictor import DEFAULT_SCORE, Predictor
from pipelines.stitching import Stitcher

SMALLEST = 64  # px of side of a crop that is not split further
FULL = 0.95  # share of the queries taken from which a crop counts as full: a few always double another or find nothing
SHARED = 4  # a split crop's parts share at most a quarter of its side
NINETY = 1.6449  # standard deviations to each side that hold 90 % of a normal distribution

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SoftPoints:
    """What each query stands for: places (M, 2) x and y in px, and p (M,) to be an object of any class."""

    places: Floats
    p: Floats

    @classmethod
    def nothing(cls) -> SoftPoints:
        return cls(np.zeros((0, 2)), np.zeros(0))

    @classmethod
    def concatenate(cls, parts: list[SoftPoints]) -> SoftPoints:
        whole = [cls.nothing(), *parts]
        return cls(np.concatenate([one.places for one in whole]), np.concatenate([one.p for one in whole]))

    def inside(self, rows: tuple[int, int], columns: tuple[int, int]) -> SoftPoints:
        """Those in a half-open window."""
        x, y = self.places.T
        kept = (x >= columns[0]) & (x < columns[1]) & (y >= rows[0]) & (y < rows[1])
        return SoftPoints(self.places[kept], self.p[kept])

    def shifted(self, row: int, column: int) -> SoftPoints:
        return SoftPoints(self.places + np.array([column, row], np.float64), self.p)


@dataclass(frozen=True)
class Full:
    """A crop that stayed full at the smallest size: there may be more in `window` than was counted."""

    window: Window
    taken: int
    queries: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [self.window[0].start, self.window[0].stop],
            "columns": [self.window[1].start, self.window[1].stop],
            "taken": self.taken,
            "queries": self.queries,
        }


@dataclass(frozen=True)
class PictureCount:
    """objects: on the picture's canvas, canonical. soft: all queries, each once. crops: forward passes; splits: crops
    looked at again in parts; full: crops that stayed full; ambiguous_links as in stitching."""

    objects: MaskSet
    soft: SoftPoints
    crops: int
    splits: int
    full: tuple[Full, ...]
    ambiguous_links: int

    @property
    def count(self) -> int:
        return len(self.objects)

    @property
    def expected(self) -> float:
        """Sum of the queries' probabilities."""
        return float(self.soft.p.sum())

    @property
    def interval(self) -> tuple[float, float]:
        """Where 90 of 100 such pictures' counts lie if the probabilities are right and independent, which networks'
        seldom are: a lower bound of the doubt, not a promise."""
        spread = NINETY * math.sqrt(float((self.soft.p * (1 - self.soft.p)).sum()))
        return max(self.expected - spread, 0.0), self.expected + spread


class _Witness(nn.Module):
    """Passes everything on and keeps what the model last said."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: Any = None

    def forward(self, x: Tensor) -> Any:
        said = self.model(x)
        if self.seen is None:  # with flips the first view is the picture itself
            self.seen = said
        return said


@dataclass
class _Crop:
    objects: MaskSet
    soft: SoftPoints
    taken: int
    queries: int | None


@dataclass
class _Tally:
    crops: int = 0
    splits: int = 0
    full: list[Full] = field(default_factory=list)
    ambiguous_links: int = 0


class Counter:
    """A model ready to count pictures; `options` settled (`pipelines.predictor.settle`), task `instance`."""

    def __init__(
        self, model: nn.Module, adapter: DomainAdapter, options: PredictOptions, smallest: int = SMALLEST
    ) -> None:
        assert options.tile is not None and options.overlap is not None, "settled options"
        self.adapter, self.options, self.smallest = adapter, options, smallest
        self._predictor = Predictor(_Witness(model), adapter, options)
        self._witness: Any = self._predictor.model  # in half precision a copy of the one handed in
        self._score = DEFAULT_SCORE if options.score is None else options.score

    def count(self, source: Any, on_crop: Callable[[int, int], None] | None = None) -> PictureCount:
        """Count what is on a source of any size."""
        tally = _Tally()
        grid = Grid(source.shape, self.options.tile, self.options.overlap)  # type: ignore[arg-type]
        origin = (slice(0, source.shape[0]), slice(0, source.shape[1]))
        found, soft = self._tiled(source, grid, origin, tally, on_crop)
        objects = limit(self.adapter.outputs(found), self.options).canonical()
        return PictureCount(objects, soft, tally.crops, tally.splits, tuple(tally.full), tally.ambiguous_links)

    def _tiled(
        self,
        source: Any,
        grid: Grid,
        place: Window,
        tally: _Tally,
        on_crop: Callable[[int, int], None] | None = None,
    ) -> tuple[MaskSet, SoftPoints]:
        """The objects and owned queries of the part `place` of a source, cut by `grid`; in the part's coordinates."""
        stitcher = Stitcher(grid)
        parts: list[MaskSet] = []
        owned: list[SoftPoints] = []
        for done, tile in enumerate(grid.tiles, start=1):
            row, column = tile.offset
            window = tuple(
                slice(side.start + outer.start, side.stop + outer.start)
                for side, outer in zip(tile.window, place, strict=True)
            )
            objects, soft = self._look(source, window, tally)
            parts.append(stitcher.add(tile, objects))
            core = [(grid.cores[axis][at], grid.cores[axis][at + 1]) for axis, at in enumerate(tile.index)]
            owned.append(soft.shifted(row, column).inside(core[0], core[1]))
            if on_crop:
                on_crop(done, len(grid))
        parts.append(stitcher.finish())
        tally.ambiguous_links += stitcher.ambiguous_links
        return MaskSet.concatenate(parts), SoftPoints.concatenate(owned)

    def _look(self, source: Any, window: Window, tally: _Tally) -> tuple[MaskSet, SoftPoints]:
        """One crop, in its own coordinates; in parts where its queries do not suffice."""
        array, valid = source.read(window)
        if not valid.any():
            return MaskSet.empty(valid.shape), SoftPoints.nothing()
        crop = self._crop(array, valid)
        tally.crops += 1
        if crop.queries is None or crop.taken < FULL * crop.queries:
            return crop.objects, crop.soft
        parts = split_grid(valid.shape, self.options.overlap or 0)
        if min(parts.tile) < self.smallest:
            tally.full.append(Full(window, crop.taken, crop.queries))
            return crop.objects, crop.soft
        tally.splits += 1
        return self._tiled(source, parts, window, tally)

    def _crop(self, array: NDArray, valid: NDArray[np.bool_]) -> _Crop:
        self._witness.seen = None
        result = self._predictor([(array, valid)])[0]
        said, size = self._witness.seen, valid.shape
        thing = self.adapter.classes.is_thing
        if isinstance(said, DensePrediction):  # a per-pixel network has regions, and as many as it likes
            every = inference.instances(said, size, valid=size, score=0.0, thing=thing)[0]
            return _Crop(result.objects, SoftPoints(centroids(every), every.scores.astype(np.float64)), 0, None)
        soft, best = soft_points(said, size, thing)
        return _Crop(result.objects, soft, int((best >= self._score).sum()), len(best))


@torch.inference_mode()
def soft_points(
    prediction: Prediction, size: tuple[int, int], thing: tuple[bool, ...]
) -> tuple[SoftPoints, NDArray[np.float32]]:
    """Of the first picture of a batch: where each query's mask has its centroid, with p to be any thing; and the p of
    each query's best thing (Q,). A query whose mask is nowhere above one half stands at its highest pixel."""
    p = prediction.class_logits[0].float().softmax(-1)[:, :-1]
    p = p[:, torch.tensor(thing, device=p.device)]
    height, width = math.ceil(size[0] / STRIDE), math.ceil(size[1] / STRIDE)
    logits = prediction.mask_logits[0, :, :height, :width].float()
    inside = (logits > 0).float()
    area = inside.sum((1, 2)).clamp(min=1)
    x = (torch.arange(width, device=p.device) + 0.5) * STRIDE
    y = (torch.arange(height, device=p.device) + 0.5) * STRIDE
    peak = logits.flatten(1).argmax(1)
    empty = ~inside.flatten(1).any(1)
    cx = torch.where(empty, x[peak % width], (inside.sum(1) @ x) / area)
    cy = torch.where(empty, y[peak // width], (inside.sum(2) @ y) / area)
    places = torch.stack((cx.clamp(max=size[1] - 0.5), cy.clamp(max=size[0] - 0.5)), 1).cpu().numpy()
    best = p.amax(1) if p.shape[1] else p.new_zeros(len(p))
    return SoftPoints(places.astype(np.float64), p.sum(1).cpu().numpy().astype(np.float64)), best.cpu().numpy()


def split_grid(shape: tuple[int, ...], overlap: int) -> Grid:
    """A crop in two parts along each axis, which share `overlap` pixels or a quarter of the side, what is less."""
    shared = [min(overlap, side // SHARED) for side in shape]
    return Grid(shape, [-(-(side + common) // 2) for side, common in zip(shape, shared, strict=True)], shared)
