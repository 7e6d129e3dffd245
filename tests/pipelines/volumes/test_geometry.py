"""The patient's millimetres survive every orientation, obliquity and spacing, there and back."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from maskformer.masks import MaskSet
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.resampling import plan_resampling

ORIENTATIONS = ["".join(c) for p in permutations(("RL", "AP", "SI")) for c in product(*p)]


def grid(seed: int, orientation: str | None = None, shape: tuple[int, int, int] | None = None) -> VolumeGeometry:
    """A random oblique, anisotropic grid whose axes run nearest to `orientation`."""
    random = np.random.default_rng(seed)
    orientation = orientation or ORIENTATIONS[seed % 48]
    codes = np.array(nibabel.orientations.axcodes2ornt(tuple(orientation)))
    matrix = np.zeros((3, 3))
    matrix[codes[:, 0].astype(int), range(3)] = codes[:, 1]
    oblique = Rotation.from_rotvec(random.uniform(-0.4, 0.4, 3)).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = oblique @ matrix @ np.diag(random.uniform(0.6, 3.5, 3))
    affine[:3, 3] = random.uniform(-200, 200, 3)
    return VolumeGeometry(shape or tuple(int(n) for n in random.integers(28, 44, 3)), affine)


def blobs(geometry: VolumeGeometry, seed: int) -> np.ndarray:
    """Label map of two ellipsoids."""
    random = np.random.default_rng(seed)
    world = geometry.world(np.moveaxis(np.indices(geometry.shape), 0, -1))
    extent = np.array(geometry.shape) * geometry.spacing
    labels = np.zeros(geometry.shape, np.uint8)
    for label, place in ((1, 0.35), (7, 0.65)):
        centre = geometry.world((np.array(geometry.shape) - 1) * place)
        radius = random.uniform(0.12, 0.2, 3) * extent.min()
        labels[(((world - centre) / radius) ** 2).sum(-1) < 1] = label
    return labels


def centroid(mask: np.ndarray) -> np.ndarray:
    return np.array([c.mean() for c in np.nonzero(mask)])


def test_geometry_says_what_nibabel_says() -> None:
    assert len(set(ORIENTATIONS)) == 48
    for seed, orientation in enumerate(ORIENTATIONS):
        one = grid(seed, orientation)
        assert one.orientation == tuple(orientation) == nibabel.aff2axcodes(one.affine)
        assert one.spacing == pytest.approx(nibabel.affines.voxel_sizes(one.affine))
        assert one.voxel_volume_mm3 == pytest.approx(np.prod(one.spacing))
        assert one.index(one.world([3, 4, 5])) == pytest.approx([3, 4, 5])
        assert one.shear < 1e-12


def test_geometry_equality_and_faults() -> None:
    one = grid(3)
    moved = one.affine.copy()
    moved[0, 3] = np.nextafter(moved[0, 3], 1e9)
    assert one == VolumeGeometry(one.shape, one.affine.copy()) and one != VolumeGeometry(one.shape, moved)
    assert one.same_grid(VolumeGeometry(one.shape, moved))
    assert one.distance(VolumeGeometry((1, 2, 3), one.affine)) == np.inf
    with pytest.raises(ValueError, match="inverse"):
        VolumeGeometry((2, 2, 2), np.diag([1.0, 1, 0, 1]))
    with pytest.raises(ValueError, match="at least one voxel"):
        VolumeGeometry((2, 0, 2), np.eye(4))
    with pytest.raises(ValueError, match="one of each of"):
        plan_resampling(one, "RRS")
    with pytest.raises(ValueError, match="above 0"):
        plan_resampling(one, "RAS", (1, 0, 1))


def test_planes_by_name() -> None:
    one = VolumeGeometry((20, 30, 40), np.array([[0, 0, 3.0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))
    assert one.orientation == ("P", "S", "R")
    assert [one.axis_of(p) for p in ("sagittal", "coronal", "axial", "thick")] == [2, 0, 1, 2]


def test_window_of_a_geometry() -> None:
    one = grid(5)
    part = one.window((slice(2, 9), slice(3, 30), slice(1, 2)))
    assert part.shape == (7, 27, 1)
    assert np.allclose(part.world([1, 1, 0]), one.world([3, 4, 1]))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_flips_and_permutations_lose_nothing(orientation: str) -> None:
    seed = ORIENTATIONS.index(orientation)
    one = grid(seed, orientation, (5, 6, 7))
    plan = plan_resampling(one, "RAS")
    values = np.random.default_rng(seed).integers(-1000, 1000, (2, *one.shape)).astype(np.int16)
    turned = plan.forward(values)
    assert plan.is_exact and turned.dtype == np.int16 and plan.target.orientation == ("R", "A", "S")
    assert np.array_equal(plan.back_labels(turned[0]), values[0])
    assert np.array_equal(plan.back_mask(turned[0] > 0), values[0] > 0)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(values[0], one.affine))
    assert np.array_equal(turned[0], np.asanyarray(expected.dataobj))
    assert np.allclose(plan.target.affine, expected.affine)


@given(st.integers(0, 10**6))
def test_labels_stay_where_they_are_there_and_back(seed: int) -> None:
    """Centroids of labels of at least 100 voxels on both grids, seven across, in voxels of the coarser one.

    As probabilities they move less than a tenth of a voxel. Cut to yes and no on a coarse grid first, a thin object's
    centre is only known to a quarter of a voxel: nothing can bring back what the cut took.
    """
    random = np.random.default_rng(seed)
    one = grid(seed)
    spacing = np.clip(np.array(one.spacing).mean() * random.uniform(0.35, 1.7, 3), 0.5, 4)
    plan = plan_resampling(one, ORIENTATIONS[seed // 48 % 48], spacing)
    assert plan.source is one and plan.target.spacing == pytest.approx(spacing, rel=1e-3)
    coarser = np.ones(3)
    coarser[list(plan.axes)] = np.maximum(1, spacing / np.array(one.spacing)[list(plan.axes)])
    truth = blobs(one, seed)
    there = {label: plan.forward((truth == label).astype(np.float32)) for label in (1, 7)}
    cut = np.zeros(plan.target.shape, np.uint8)
    for label in there:
        cut[plan.forward_mask(truth == label)] = label
    labels = plan.back_labels(cut)
    assert labels.shape == one.shape and labels.dtype == truth.dtype
    for label, soft in there.items():
        mask = truth == label
        if min(mask.sum(), (cut == label).sum()) < 100 or min(np.ptp(c) for c in np.nonzero(mask)) < 6:
            continue
        moved = [centroid(m) - centroid(mask) for m in (plan.back_mask(soft), plan.back_mask(cut == label))]
        assert np.abs(moved[0] / coarser).max() < 0.1
        assert np.abs(moved[1] / coarser).max() < 0.3
        assert np.abs((centroid(labels == label) - centroid(mask)) / coarser).max() < 0.3


@given(st.integers(0, 10**6))
def test_values_keep_their_place_in_the_patient(seed: int) -> None:
    """A linear ramp over the patient is the same ramp on the new grid, away from the border."""
    one = grid(seed)
    random = np.random.default_rng(seed)
    spacing = np.array(one.spacing).mean() * random.uniform(0.5, 2.5, 3)
    plan = plan_resampling(one, ORIENTATIONS[seed % 47], spacing)
    slope = random.uniform(-1, 1, 3)
    ramp = (one.world(np.moveaxis(np.indices(one.shape), 0, -1)) @ slope).astype(np.float32)
    found = plan.forward(ramp[None])[0]
    world = plan.target.world(np.moveaxis(np.indices(plan.target.shape), 0, -1))
    edge = np.maximum(2, np.ceil(2 * np.array(plan.factors))).astype(int)
    inner = tuple(slice(e, -e) for e in edge)
    assert np.abs(found - world @ slope)[inner].max(initial=0) < 2e-3
    corner = plan.target.world(np.array(plan.target.shape) / 2 - 0.5)
    assert np.allclose(corner, one.world(np.array(one.shape) / 2 - 0.5))


def test_objects_resample_as_their_masks_do() -> None:
    """Box by box or whole, with overlaps and objects thinner than a voxel of the new grid."""
    one = grid(11, shape=(30, 33, 36))
    plan = plan_resampling(one, "LIP", (2.0, 3.1, 1.3))
    masks = np.zeros((4, *one.shape), bool)
    masks[0, 4:20, 6:25, 3:30] = True
    masks[1, 10:28, 2:14, 8:20] = True
    masks[2, 0:3, 0:4, 33:36] = True
    masks[3, 12, 30, 7] = True
    objects = MaskSet.from_dense(masks, [0, 1, 0, 1], [0.5, 0.6, 0.7, 0.8])
    moved = plan.forward_objects(objects)
    assert np.array_equal(moved.to_dense(), np.stack([plan.forward_mask(m) for m in masks]))
    assert moved.areas.min() >= 1 and list(moved.scores) == pytest.approx([0.5, 0.6, 0.7, 0.8])
    back = plan.back_objects(moved)
    assert np.array_equal(back.to_dense(), np.stack([plan.back_mask(m) for m in moved.to_dense()]))
    assert len(plan.forward_objects(objects[:0])) == 0


def test_nearest_keeps_types_and_values() -> None:
    one = grid(2)
    plan = plan_resampling(one, "RAS", (1.0, 1.0, 2.0))
    labels = np.random.default_rng(0).integers(0, 4000, one.shape).astype(np.uint16)
    found = plan.forward(labels, order=0)
    assert found.dtype == np.uint16 and set(np.unique(found)) <= set(np.unique(labels))
