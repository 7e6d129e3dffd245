"""The smooth field that a coil lays over an MR volume, estimated from the volume alone and divided out.

The logarithm of what is measured is a tissue's own level plus the field's. Levels and field are estimated in turn: each
voxel belongs to the nearest of a few levels, and a cubic polynomial in the place is fitted to what is left (after
Wells et al. 1996, with polynomials as in Styner et al. 2000). Air has no field and is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adapters.volume import VolumeRules

if TYPE_CHECKING:
    from pipelines.volumes.source import VolumeSource, Window

ORDER = 3
LEVELS = 4
ROUNDS = 12
MOST_VOXELS = 40_000
AIR = 0.1  # of the 99th percentile: below lies no tissue
STRONGEST = 1.5  # of the field's logarithm either way: a factor of 4.5
PRODUCTS = [p for p in product(range(ORDER + 1), repeat=3) if 0 < sum(p) <= ORDER]

Field = Callable[["Window"], NDArray[np.float32]]


def flatten(source: VolumeSource, rules: VolumeRules) -> None:
    """Let `source` read values divided by their field, a channel at a time, where the rules ask for it. Once."""
    if not rules.flatten or "flattened" in source.extra:
        return
    source.divide_by([field_of(values, source.shape) for values in source.read()[0]])
    source.extra["flattened"] = True


def field_of(values: NDArray, shape: tuple[int, ...]) -> Field:
    """The field of one channel (d, h, w), as a function of a window; its mean logarithm over the tissue is 0."""
    tissue = np.argwhere(values > AIR * np.percentile(values, 99))
    if len(tissue) < 10 * (ORDER + 1) ** 3:  # too little to tell anything
        return lambda window: np.ones([part.stop - part.start for part in window], np.float32)
    tissue = tissue[:: -(-len(tissue) // MOST_VOXELS)]
    measured = np.log(values[tuple(tissue.T)].astype(np.float64))
    powers = [_powers(tissue[:, axis], length) for axis, length in enumerate(shape)]
    terms = np.stack([powers[0][a] * powers[1][b] * powers[2][c] for a, b, c in PRODUCTS], 1)
    centre = terms.mean(0)
    weights = _fitted(terms - centre, measured)
    table = np.zeros((ORDER + 1,) * 3)
    table[tuple(np.transpose(PRODUCTS))] = weights
    table[0, 0, 0] = -float(centre @ weights)

    def field(window: Window) -> NDArray[np.float32]:
        axes = [_powers(np.arange(part.start, part.stop), n) for part, n in zip(window, shape)]
        logarithm = np.einsum("abc,ai,bj,ck->ijk", table, *axes, optimize=True)
        return np.exp(np.clip(logarithm, -STRONGEST, STRONGEST)).astype(np.float32)

    return field


def _fitted(terms: NDArray, measured: NDArray) -> NDArray[np.float64]:
    """(M,) the polynomial that leaves the least between `measured` (N,) and the nearest of the tissues' levels."""
    # Begun as if all tissue were one: levels taken from raw values would each hold a corner of the field.
    weights = np.linalg.lstsq(terms, measured - measured.mean(), rcond=None)[0]
    levels = np.quantile(measured - terms @ weights, (np.arange(LEVELS) + 0.5) / LEVELS)
    for _ in range(ROUNDS):
        flat = measured - terms @ weights
        nearest = np.abs(flat[:, None] - levels).argmin(1)
        levels = np.array([flat[nearest == k].mean() if (nearest == k).any() else levels[k] for k in range(LEVELS)])
        weights = np.linalg.lstsq(terms, measured - levels[nearest], rcond=None)[0]
    return weights


def _powers(places: NDArray, length: int) -> NDArray[np.float64]:
    """(ORDER + 1, N) powers of places on an axis, its ends at -1 and 1."""
    centred = places / max(length - 1, 1) * 2.0 - 1.0
    return centred[None] ** np.arange(ORDER + 1)[:, None]
