"""Where the voxels of a volume lie in the patient, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Of each axis code the patient axis (right-left, back-front, foot-head) and whether it rises towards it.
_CODES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
_NAMES = (("L", "R"), ("P", "A"), ("I", "S"))
_PLANES = ("sagittal", "coronal", "axial")  # the plane across each patient axis


@dataclass(frozen=True, eq=False)
class VolumeGeometry:
    """A grid of voxels: shape in the array's own axis order, affine from voxel index to patient RAS mm.

    Index (0, 0, 0) is the centre of the first voxel, as in NIfTI; RAS grows to the right, the front and the head.
    Equal geometries have bit-equal affines. ValueError where the affine has no inverse.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    frame: str = "RAS"

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"expected a volume of three axes of at least one voxel, found {shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"expected a finite affine (4, 4), found {affine.tolist()}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise ValueError(f"expected an affine with an inverse, found {affine.tolist()}")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VolumeGeometry):
            return NotImplemented
        return self.shape == other.shape and self.frame == other.frame and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes(), self.frame))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm between voxel centres along each array axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> tuple[str, str, str]:
        """The patient direction each array axis runs towards, nearest first served (nibabel's axis codes)."""
        a, b, c = (_NAMES[axis][sign > 0] for axis, sign in self.directions)
        return a, b, c

    @property
    def directions(self) -> list[tuple[int, int]]:
        """(patient axis, sign) of each array axis; every patient axis is given out once."""
        cosines = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        # The nearest rotation decides, so that a shear cannot give two array axes to one patient axis.
        left, _, right = np.linalg.svd(cosines)
        rotation = left @ right
        found: list[tuple[int, int]] = [(0, 1)] * 3
        for _ in range(3):
            axis, column = np.unravel_index(np.argmax(np.abs(rotation)), (3, 3))
            found[int(column)] = (int(axis), 1 if rotation[axis, column] > 0 else -1)
            rotation[axis, :] = rotation[:, column] = 0
        return found

    @property
    def voxel_volume_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def shear(self) -> float:
        """Largest cosine between two array axes: 0 for a right-angled grid, sin of the tilt of a tilted gantry."""
        cosines = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(np.abs(cosines.T @ cosines - np.eye(3)).max())

    def axis_of(self, plane: str) -> int:
        """Array axis that runs across a plane: `axial`, `coronal`, `sagittal`, or `thick`: the widest spacing.

        Of equal spacings `thick` is the axis of fewest voxels, then the last.
        """
        if plane == "thick":
            spacing = np.round(self.spacing, 3)
            return max(range(3), key=lambda a: (spacing[a], -self.shape[a], a))
        if plane not in _PLANES:
            raise ValueError(f"expected a plane of {', '.join(_PLANES)} or thick, found {plane!r}")
        return [axis for axis, _ in self.directions].index(_PLANES.index(plane))

    def world(self, index: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) voxel indices -> (..., 3) RAS mm."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) RAS mm -> (..., 3) voxel indices, with fractions."""
        return (np.asarray(world, np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def corners(self) -> NDArray[np.float64]:
        """(8, 3) centres of the corner voxels in RAS mm."""
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, 8).T
        return self.world(ends)

    def distance(self, other: VolumeGeometry) -> float:
        """Largest distance in mm between equal corners of two grids of one shape; infinity for other shapes."""
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())

    def same_grid(self, other: VolumeGeometry, tolerance: float = 0.02) -> bool:
        """Whether no corner is further off than `tolerance` of the finest spacing (headers hold float32)."""
        return self.distance(other) <= tolerance * min(self.spacing)

    def window(self, window: tuple[slice, ...]) -> VolumeGeometry:
        """The geometry of a part of the grid (slices of step 1)."""
        bounds = [part.indices(n) for part, n in zip(window, self.shape, strict=True)]
        affine = self.affine.copy()
        affine[:3, 3] = self.world([start for start, _, _ in bounds])
        a, b, c = (stop - start for start, stop, _ in bounds)
        return VolumeGeometry((a, b, c), affine, self.frame)

    def describe(self) -> str:
        """One line: `134x136x47 voxels of 0.977x0.977x3.27 mm, LPS, first voxel at (-87.9, 143.6, -225.6)`."""
        shape = "x".join(str(n) for n in self.shape)
        spacing = "x".join(f"{s:.4g}" for s in self.spacing)
        first = ", ".join(f"{v:.1f}" for v in self.affine[:3, 3])
        return f"{shape} voxels of {spacing} mm, {''.join(self.orientation)}, first voxel at ({first})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"shape": list(self.shape), "affine": self.affine.tolist(), "frame": self.frame}


def codes_of(orientation: str | tuple[str, ...]) -> list[tuple[int, int]]:
    """(patient axis, sign) of each letter of an orientation such as `RAS`; ValueError where it is none."""
    letters = [str(c).upper() for c in orientation]
    known = [_CODES.get(c) for c in letters]
    found = [code for code in known if code is not None]
    if len(letters) != 3 or sorted(axis for axis, _ in found) != [0, 1, 2]:
        raise ValueError(
            f"expected an orientation of three letters, one of each of R/L, A/P and S/I, found {orientation!r}"
        )
    return found
