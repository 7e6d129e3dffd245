"""objects.csv: what was found, how large, and where in the patient."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from adapters.classes import ClassSet
from maskformer.masks import MaskSet
from pipelines.sinks.folder import atomic_write
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.sinks import NOTICE

COLUMNS = (
    "object", "id", "class_id", "class", "score", "voxels", "volume_mm3", "right_mm", "anterior_mm", "superior_mm",
    "diameter_max_mm", "diameter_sphere_mm", "notice",
)  # fmt: skip


def write_table(
    path: Path,
    objects: MaskSet,
    geometry: VolumeGeometry,
    classes: ClassSet,
    diameters: NDArray[np.float64] | None = None,
) -> Path:
    """One row an object, numbered as in objects.nii.gz; class_id as in labels.nii.gz.

    right, anterior, superior: the centroid in patient mm (RAS). diameter_max: the largest distance between two of its
    voxel centres (`diameters`, where they are known already); diameter_sphere: of the ball of the same volume.
    """
    diameters = largest_diameters(objects, geometry) if diameters is None else diameters
    centres = geometry.world(centroids(objects))
    with atomic_write(path) as temporary, Path(temporary).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for n in range(len(objects)):
            label = int(objects.labels[n])
            volume = float(objects.areas[n]) * geometry.voxel_volume_mm3
            lengths = (diameters[n], (6 * volume / np.pi) ** (1 / 3))
            row = [n + 1, int(objects.ids[n]), label + 1, classes.classes[label].name, f"{objects.scores[n]:.4f}"]
            row += [int(objects.areas[n]), *(f"{v:.3f}" for v in (volume, *centres[n], *lengths)), NOTICE]
            writer.writerow(row)
    return path


def centroids(objects: MaskSet) -> NDArray[np.float64]:
    """(N, 3) mean voxel index of each object; nan for an empty one."""
    runs, owner = objects.runs.astype(np.float64), objects._owners()
    length = runs[:, 3] - runs[:, 2]
    middle = np.column_stack([runs[:, 0], runs[:, 1], (runs[:, 2] + runs[:, 3] - 1) / 2])
    sums = np.column_stack([np.bincount(owner, middle[:, a] * length, len(objects)) for a in range(3)])
    areas = objects.areas.astype(np.float64)[:, None]
    return np.divide(sums, areas, out=np.full(sums.shape, np.nan), where=areas > 0)


def largest_diameters(objects: MaskSet, geometry: VolumeGeometry) -> NDArray[np.float64]:
    """(N,) mm, see `largest_diameter`."""
    return np.array([largest_diameter(objects[[n]], geometry) for n in range(len(objects))])


def largest_diameter(one: MaskSet, geometry: VolumeGeometry) -> float:
    """mm between the two voxel centres of an object that are furthest apart (found on its convex hull)."""
    runs = one.runs
    ends = np.concatenate([runs[:, :3], np.column_stack([runs[:, :2], runs[:, 3] - 1])])
    points = geometry.world(ends)
    if len(points) > 8:
        try:
            points = points[ConvexHull(points).vertices]
        except QhullError:  # flat: all in one plane or line; few enough there, or thinned by direction
            points = _flat_extremes(points)
    return float(pdist(points).max()) if len(points) > 1 else 0.0


def _flat_extremes(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The hull of points that lie in one plane, or the ends of those on one line."""
    away = points - points.mean(axis=0)
    _, size, ways = np.linalg.svd(away, full_matrices=False)
    plane = away @ ways[:2].T
    if size[1] < 1e-9 * max(size[0], 1e-300):
        return points[[int(plane[:, 0].argmin()), int(plane[:, 0].argmax())]]
    return points[ConvexHull(plane).vertices]
