"""From file to files in all 48 orientations, oblique and anisotropic: header to the bit, objects where they were."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pipelines.volumes.prediction import VolumeModel, VolumeOptions
from pipelines.volumes.resampling import plan_resampling
from pipelines.volumes.studies import predict_volume
from tests.pipelines.volumes.test_geometry import ORIENTATIONS, centroid, grid
from tests.pipelines.volumes.test_volume_prediction import FAST, Threshold, adapter

# of the scan's own spacing, along R, A and S: finer in two directions, coarser in the third
GRID_OF_THE_MODEL = (0.7, 0.8, 1.2)
GEOMETRY = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units", "dim_info",
)  # fmt: skip


def pictured(shape: tuple[int, ...]) -> np.ndarray:
    """Two ellipsoids, longest along the last axis; their border is about as soft as a voxel is long."""
    result = np.zeros(shape, np.float32)
    for place, share in ((0.3, 0.2), (0.7, 0.17)):
        radius = share * np.array(shape)
        away = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) * place
        far = np.linalg.norm(away / radius, axis=-1)
        result = np.maximum(result, np.clip(0.5 + (1 - far) * radius.min(), 0, 1))
    return result


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_results_lie_on_the_scan(orientation: str, tmp_path: Path) -> None:
    """Label maps and objects of at least 100 voxels: centroids within a tenth of a voxel, along every axis."""
    geometry = grid(ORIENTATIONS.index(orientation), orientation, (26, 28, 30))
    picture = pictured(geometry.shape)
    image = nibabel.Nifti1Image(picture, geometry.affine)
    image.set_qform(geometry.affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "scan.nii.gz")
    before = nibabel.load(tmp_path / "scan.nii.gz")

    axes = plan_resampling(geometry, "RAS").axes
    spacing = tuple(geometry.spacing[axis] * ratio for axis, ratio in zip(axes, GRID_OF_THE_MODEL))
    model = VolumeModel(Threshold(), adapter(1, spacing=spacing))
    folder = predict_volume(tmp_path / "scan.nii.gz", model, tmp_path / "out", VolumeOptions(**FAST, task="instance"))

    found = {name: nibabel.load(folder / f"{name}.nii.gz") for name in ("labels", "objects")}
    for after in found.values():
        assert after.shape == before.shape and np.array_equal(after.affine, before.affine)
        for key in GEOMETRY:
            assert after.header[key].tobytes() == before.header[key].tobytes(), key
    labels, objects = (np.asanyarray(after.dataobj) for after in found.values())
    truth = picture > 0.5
    with (folder / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    first = np.indices(truth.shape).sum(0) < sum(truth.shape) / 2
    for number, row in enumerate(rows, start=1):
        mine = objects == number
        half = first if (mine & first).any() else ~first
        place = centroid(truth & half)
        assert (truth & half).sum() >= 100 and mine.any()
        moved = [centroid(mine), centroid((labels == 1) & half), geometry.index(millimetres(row))]
        assert np.abs(np.array(moved) - place).max() < 0.1


def millimetres(row: dict[str, str]) -> np.ndarray:
    return np.array([float(row[key]) for key in ("right_mm", "anterior_mm", "superior_mm")])
