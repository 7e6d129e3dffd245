"""Boundary IoU (Cheng et al. 2021, arXiv 2103.16562) of class maps: how well outlines agree, whatever lies inside.

A class' boundary region is what of its mask lies within `DISTANCE` pixels (chessboard) of the mask's edge; the scene's
own border counts as an edge. The paper's distance is 2 % of a picture's diagonal, which for a scene of 10 000 pixels
would be wider than its objects: here it is a fixed number of pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

DISTANCE = 3  # px


def boundary(mask: NDArray[np.bool_], distance: int = DISTANCE) -> NDArray[np.bool_]:
    """(H, W) bool: pixels of `mask` within `distance` of its edge."""
    depth = distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
    return mask & (depth <= distance)


def boundary_counts(
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    num_classes: int,
    ignore: NDArray[np.bool_],
    distance: int = DISTANCE,
) -> NDArray[np.int64]:
    """(2, K): pixels in both boundary regions and in either, of class maps (0 nothing, 1..K); ignored pixels count not.

    Sums over scenes divide to the IoU.
    """
    counts = np.zeros((2, num_classes), np.int64)
    for index in range(num_classes):
        ours, theirs = (boundary(ids == index + 1, distance) & ~ignore for ids in (prediction, truth))
        counts[:, index] = (ours & theirs).sum(), (ours | theirs).sum()
    return counts
