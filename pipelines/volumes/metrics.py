"""Scores of labelled volumes in millimetres: Dice, IoU, HD95, surface Dice, lesions, volume; means with intervals.

Definitions are MONAI's (tests hold both to 1e-6): the surface of a mask are its voxels with a face neighbour outside it
(the border of the picture counts as outside), distances are Euclidean between voxel centres.

Where there is nothing to compare:
- prediction and truth both empty: `nan`, the class is not scored in this case (a mean leaves it out);
- one of them empty: Dice, IoU, surface Dice and F1 are 0, HD95 is the diagonal of the volume, the worst there can be
  (MONAI gives infinity or nan, which no mean survives);
- the relative volume error of an empty truth is `nan`, the absolute one always exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from maskformer.masks import MaskSet

PERCENTILE = 95
LESION_IOU = 0.1  # a lesion is found from this IoU on: overlap that is no accident
NAMES = ("dice", "iou", "hd95", "nsd", "lesion_f1", "volume_error_mm3", "relative_volume_error")
FULL = np.ones((3, 3, 3), bool)  # 26 neighbours: what touches at a corner is one lesion
Mask = NDArray[np.bool_]


class Interval(NamedTuple):
    """A mean over patients with its bootstrap interval; `patients` is how many had a score."""

    mean: float
    low: float
    high: float
    patients: int


def score_masks(prediction: Mask, truth: Mask, spacing: Sequence[float], tolerance_mm: float = 2.0) -> dict[str, float]:
    """All scores of one class in one case.

    prediction, truth: (d, h, w) bool; spacing: mm along the axes; tolerance_mm: of the surface Dice. ValueError for
    shapes that differ. Lesions are the connected components (26 neighbours); give objects to `lesion_f1` to score them.
    """
    if prediction.shape != truth.shape or prediction.ndim != 3:
        raise ValueError(f"expected two volumes of one shape, found {prediction.shape} and {truth.shape}")
    voxel = float(np.prod(spacing))
    mine, theirs = int(prediction.sum()), int(truth.sum())
    if not mine and not theirs:
        return {**dict.fromkeys(NAMES, float("nan")), "volume_error_mm3": 0.0}
    error = (mine - theirs) * voxel
    if not mine or not theirs:
        diagonal = float(np.linalg.norm(np.array(truth.shape) * spacing))
        relative = -1.0 if theirs else float("nan")
        return dict(zip(NAMES, (0.0, 0.0, diagonal, 0.0, 0.0, error, relative)))
    window = _box(prediction | truth)
    prediction, truth = prediction[window], truth[window]
    shared = int((prediction & truth).sum())
    there, back = surface_distances(prediction, truth, spacing)
    return {
        "dice": 2 * shared / (mine + theirs),
        "iou": shared / (mine + theirs - shared),
        "hd95": hausdorff(there, back),
        "nsd": surface_dice(there, back, tolerance_mm),
        "lesion_f1": lesion_f1(components(prediction), components(truth)),
        "volume_error_mm3": error,
        "relative_volume_error": (mine - theirs) / theirs,
    }


def score_labels(
    prediction: NDArray, truth: NDArray, classes: Mapping[int, str], spacing: Sequence[float], tolerance_mm: float = 2.0
) -> dict[str, dict[str, float]]:
    """Scores of every class (value -> name) of two label volumes."""
    return {
        name: score_masks(prediction == value, truth == value, spacing, tolerance_mm) for value, name in classes.items()
    }


def surface_distances(prediction: Mask, truth: Mask, spacing: Sequence[float]) -> tuple[NDArray, NDArray]:
    """mm from every surface voxel of the prediction to the truth's surface, and the other way round. Neither empty."""
    mine, theirs = surface(prediction), surface(truth)
    to_theirs = ndimage.distance_transform_edt(~theirs, sampling=spacing)
    to_mine = ndimage.distance_transform_edt(~mine, sampling=spacing)
    return to_theirs[mine], to_mine[theirs]


def surface(mask: Mask) -> Mask:
    """Voxels of a mask with a face neighbour that is not in it."""
    return mask & ~ndimage.binary_erosion(mask)


def hausdorff(there: NDArray, back: NDArray, percentile: float = PERCENTILE) -> float:
    """The larger of both directions' percentiles, mm."""
    return float(max(np.percentile(there, percentile), np.percentile(back, percentile)))


def surface_dice(there: NDArray, back: NDArray, tolerance_mm: float) -> float:
    """Share of both surfaces that lies within the tolerance of the other one."""
    within = int((there <= tolerance_mm).sum()) + int((back <= tolerance_mm).sum())
    return within / (len(there) + len(back))


def components(mask: Mask) -> MaskSet:
    """Connected components (26 neighbours) as objects."""
    return MaskSet.from_label_map(ndimage.label(mask, FULL)[0])


def lesion_f1(prediction: MaskSet, truth: MaskSet, iou: float = LESION_IOU) -> float:
    """F1 of objects matched one to one per class (most IoU in all) at `iou` or above; nan where there are none."""
    if not len(prediction) and not len(truth):
        return float("nan")
    table = prediction.iou(truth) * (prediction.labels[:, None] == truth.labels[None, :])
    table = np.where(table >= iou, table, 0.0)
    pairs = linear_sum_assignment(table, maximize=True) if table.size else ((), ())
    found = sum(table[i, j] > 0 for i, j in zip(*pairs))
    return 2 * int(found) / (len(prediction) + len(truth))


def summarise(
    cases: Sequence[Mapping[str, Mapping[str, float]]],
    patients: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, dict[str, Interval]]:
    """class -> score -> mean over patients and its interval.

    cases: scores of `score_labels`, one a case; patients: whose each is. Cases of a patient are averaged first, and
    the bootstrap draws patients (percentile method): slices and visits of one patient are no independent evidence.
    A key `mean` beside the classes holds the mean over classes of every patient.
    """
    if len(cases) != len(patients) or not cases:
        raise ValueError(f"expected a patient for each case, found {len(cases)} cases and {len(patients)} patients")
    classes = list(dict.fromkeys(name for case in cases for name in case))
    result: dict[str, dict[str, Interval]] = {}
    tables: dict[str, list[NDArray]] = {}
    for name in classes:
        result[name] = {}
        for score in NAMES:
            values = _by_patient([case.get(name, {}).get(score, float("nan")) for case in cases], patients)
            tables.setdefault(score, []).append(values)
            result[name][score] = bootstrap(values, samples, seed, confidence)
    result["mean"] = {
        score: bootstrap(_nanmean(np.stack(rows), 0), samples, seed, confidence) for score, rows in tables.items()
    }
    return result


def bootstrap(values: NDArray, samples: int = 1000, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Mean of the finite values with a percentile interval; all nan where there are none."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    drawn = np.random.default_rng(seed).integers(0, len(known), (samples, len(known)))
    low, high = np.percentile(known[drawn].mean(axis=1), [50 - 50 * confidence, 50 + 50 * confidence])
    return Interval(float(known.mean()), float(low), float(high), len(known))


def _by_patient(values: Sequence[float], patients: Sequence[str]) -> NDArray[np.float64]:
    names = list(dict.fromkeys(patients))
    table = np.full((len(names), len(values)), np.nan)
    for column, (value, patient) in enumerate(zip(values, patients)):
        table[names.index(patient), column] = value
    return _nanmean(table, 1)


def _nanmean(table: NDArray, axis: int) -> NDArray[np.float64]:
    known = np.isfinite(table)
    count = known.sum(axis=axis)
    total = np.where(known, table, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _box(mask: Mask) -> tuple[Any, ...]:
    """The window of a mask that is not empty, one voxel wider where there is one.

    One voxel, so that a surface on the window's border is not one only because it was cut.
    """
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, part.start - 1), min(n, part.stop + 1)) for part, n in zip(found, mask.shape))
