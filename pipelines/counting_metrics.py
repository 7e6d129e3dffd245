"""Scores of counting: how many (MAE, RMSE, NAE), how many where (GAME), and which ones (localisation F1).

Everything is counted a picture and divided last, so that pictures add up. "MSE" in crowd counting papers is the RMSE
here. Sources: GAME from Guerrero-Gomez-Olmedo et al. (IbPRIA 2015), one-to-one localisation within a radius from
NWPU-Crowd (TPAMI 2020) and P2PNet (ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from maskformer.masks import MaskSet
from pipelines.metrics import Pairs, match

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RADII = (4.0, 10.0, 16.0)  # px; 4 and 8 (of an 8-px head) are P2PNet's and NWPU's order, 10 is ours
LEVELS = 4  # GAME(0) to GAME(3)
BUCKETS = (20, 100, 500)  # objects a picture: sparse, medium, dense, crowded
BUCKET_NAMES = ("up_to_20", "21_to_100", "101_to_500", "over_500")


def centroids(objects: MaskSet) -> Floats:
    """(N, 2) x and y of the objects' centroids, a pixel's own being (column + 0.5, row + 0.5). NaN where empty."""
    runs, sizes = objects.runs.astype(np.float64), np.diff(objects.offsets)
    owner = np.repeat(np.arange(len(objects)), sizes)
    lengths = runs[:, 2] - runs[:, 1]
    with np.errstate(invalid="ignore"):
        x = np.bincount(owner, lengths * (runs[:, 1] + runs[:, 2]) / 2, len(objects)) / objects.areas
        y = np.bincount(owner, lengths * (runs[:, 0] + 0.5), len(objects)) / objects.areas
    return np.column_stack([x, y])


def localise(found: Floats, truth: Floats, radius: float) -> tuple[Ints, Ints]:
    """Numbers of the found and of the true points that belong together: as many pairs as can be had, one to one, of
    points at most `radius` apart, and among those matchings the one with the least total distance."""
    if not len(found) or not len(truth):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    near = KDTree(found).sparse_distance_matrix(KDTree(truth), radius, output_type="ndarray")
    order = np.lexsort((near["j"], near["i"]))
    i, j, distance = near["i"][order].astype(np.int64), near["j"][order].astype(np.int64), near["v"][order]
    # A pair more is worth more than all the distance that could be saved without it.
    worth = (1 + min(len(found), len(truth))) - distance / max(radius, 1e-9)
    chosen = match(Pairs(i, j, np.ones(len(i))), worth)
    return i[chosen], j[chosen]


def cells(points: Floats, shape: Sequence[int], level: int) -> Ints:
    """Points in each of the 4^level equal cells of a picture (H, W), row by row; points off it go to the nearest."""
    side = 2**level
    at = np.floor(points / np.array([shape[1], shape[0]], np.float64) * side).astype(np.int64).clip(0, side - 1)
    return np.bincount(at[:, 1] * side + at[:, 0], minlength=side * side)


@dataclass(frozen=True)
class CountRecord:
    """One picture. truth, found: objects of each class (K,); game: (LEVELS, K) sums of the cells' errors;
    located: (len(RADII), K) pairs within each radius."""

    truth: Ints
    found: Ints
    game: Ints
    located: Ints


def count_record(found: MaskSet, truth: MaskSet, classes: int) -> CountRecord:
    """Compare the things found on a picture with the true ones, by class and centroid."""
    if found.shape != truth.shape:
        raise ValueError(f"expected two sets on one canvas, got {found.shape} and {truth.shape}")
    game, located = np.zeros((LEVELS, classes), np.int64), np.zeros((len(RADII), classes), np.int64)
    there, here = centroids(truth), centroids(found)
    for k in range(classes):
        a, b = here[found.labels == k], there[truth.labels == k]
        for level in range(LEVELS):
            game[level, k] = np.abs(cells(a, found.shape, level) - cells(b, found.shape, level)).sum()
        for number, radius in enumerate(RADII):
            located[number, k] = len(localise(a, b, radius)[0])
    totals = [np.bincount(one.labels, minlength=classes) for one in (truth, found)]
    return CountRecord(totals[0], totals[1], game, located)


def counting_scores(records: Sequence[CountRecord]) -> dict[str, Any]:
    """Scores over pictures, all classes' objects together, and `per_class` arrays (K,); NaN where not defined.

    `mae`, `rmse`, `nae` (over pictures with an object), `mean_count`, `game1..3`, `loc_f1_R loc_precision_R
    loc_recall_R` for each radius R in px, and `mae_<bucket>`, `pictures_<bucket>` by how many objects a picture has.
    GAME(0) is the MAE where there is one class.
    """
    truth, found = np.stack([r.truth for r in records]), np.stack([r.found for r in records])
    scores = _errors(found.sum(1), truth.sum(1))
    by_class = [_errors(found[:, k], truth[:, k]) for k in range(truth.shape[1])]
    scores["per_class"] = {key: np.array([one[key] for one in by_class]) for key in by_class[0]}
    game = np.stack([r.game for r in records]).mean(0)  # (LEVELS, K)
    for level in range(1, LEVELS):
        scores[f"game{level}"] = game[level].sum()
        scores["per_class"][f"game{level}"] = game[level]
    located = np.stack([r.located for r in records]).sum(0)  # (radii, K)
    for number, radius in enumerate(RADII):
        for name, values in _located(located[number], found.sum(0), truth.sum(0)).items():
            scores[f"loc_{name}_{radius:g}"] = _located_total(name, located[number], found, truth)
            scores["per_class"][f"loc_{name}_{radius:g}"] = values
    bucket = np.searchsorted(BUCKETS, truth.sum(1))
    for number, name in enumerate(BUCKET_NAMES):
        inside = bucket == number
        if inside.any():
            scores[f"mae_{name}"] = np.abs(found.sum(1) - truth.sum(1))[inside].mean()
            scores[f"pictures_{name}"] = inside.sum()
    return scores


def localisation_f1(found: MaskSet, truth: MaskSet, radius: float = 10.0) -> float:
    """F1 over all classes of one picture; 1 where nothing is there and nothing found."""
    pairs = 0
    there, here = centroids(truth), centroids(found)
    for k in np.union1d(found.labels, truth.labels):
        pairs += len(localise(here[found.labels == k], there[truth.labels == k], radius)[0])
    total = len(found) + len(truth)
    return 2 * pairs / total if total else 1.0


def count_quality(found: MaskSet, truth: MaskSet) -> float:
    """What a score limit is chosen by where things are counted: F1 within 10 px, less the relative error of the count.

    F1 alone is flat round its best, where the count still moves by a tenth.
    """
    return localisation_f1(found, truth) - min(abs(len(found) - len(truth)) / max(len(truth), 1), 1.0)


def _errors(found: Ints, truth: Ints) -> dict[str, Any]:
    errors, some = np.abs(found - truth).astype(np.float64), truth > 0
    return {
        "mae": errors.mean(),
        "rmse": np.sqrt((errors**2).mean()),
        "nae": (errors[some] / truth[some]).mean() if some.any() else np.nan,
        "mean_count": truth.mean(),
    }


def _located(pairs: Ints, found: Ints, truth: Ints) -> dict[str, Floats]:
    with np.errstate(invalid="ignore"):
        return {"precision": pairs / found, "recall": pairs / truth, "f1": 2 * pairs / (found + truth)}


def _located_total(name: str, pairs: Ints, found: Ints, truth: Ints) -> float:
    totals = _located(*(np.array([values.sum()]) for values in (pairs, found, truth)))
    return float(totals[name][0])
