"""Rule `identity` for volumes: truth cut into the artifact's slices and linked again comes back, exactly.

Ellipsoids that lie in, on and beside one another, leaning tubes through many slices, and a shell with a core: for every
plane the artifact's adapter names. Nothing of the network takes part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from adapters.volume import VolumeRules
from maskformer.masks import MaskSet
from pipelines.promotion.policy import Verdict
from pipelines.volumes.linking import LinkRules, link_slices
from pipelines.volumes.options import VolumeOptions
from pipelines.volumes.slicing import transposed, turn_objects

SHAPE = (24, 40, 44)  # voxels of a made volume
AXES = {"axial": 0, "coronal": 1, "sagittal": 2, "thick": 0}  # of the made volumes
Rng = np.random.Generator
Bools = NDArray[np.bool_]


def check_volume_identity(adapter: DomainAdapter, options: VolumeOptions, seed: int = 0) -> Verdict:
    """Slice, link and compare every family in every plane."""
    rng = np.random.default_rng(seed)
    planes = options.planes or (adapter.volume or VolumeRules()).planes
    rules = LinkRules(iou=options.link_iou, gap=options.gap)
    faults, objects = [], 0
    for name, make in {"ellipsoids": ellipsoids, "tubes": tubes, "shells": shells}.items():
        truth = _labelled(make(rng), rng, adapter)
        objects += len(truth)
        for axis in dict.fromkeys(AXES[plane] for plane in planes):
            found = _round_trip(truth, axis, rules)
            if not found.same_set(truth):
                faults.append(f"{name} across axis {axis}: {len(truth)} objects became {len(found)}, or other ones")
    how = f"slices of {', '.join(planes)} planes"
    says = f"{how}: {'; '.join(faults)}" if faults else f"{objects} objects come back exactly through {how}"
    return Verdict("identity", not faults, says, {"faults": faults, "objects": objects})


def _round_trip(truth: MaskSet, axis: int, rules: LinkRules) -> MaskSet:
    turned = transposed(truth, [axis, *(other for other in range(3) if other != axis)])
    return turn_objects(link_slices(turned.shape, _slices(turned), rules), axis)


def _slices(truth: MaskSet) -> Iterator[tuple[int, MaskSet]]:
    """What a perfect model gives for each slice."""
    for position in range(truth.shape[0]):
        part = truth.crop((slice(position, position + 1), slice(None), slice(None)))
        yield position, MaskSet(truth.shape[1:], part.runs[:, 1:], part.offsets, part.labels, part.scores)


def _labelled(masks: list[Bools], rng: Rng, adapter: DomainAdapter) -> MaskSet:
    """The family with classes of this adapter under its overlap rule; what that cuts in two is two objects."""
    labels = rng.integers(0, len(adapter.classes), len(masks))
    given = adapter.outputs(MaskSet.from_dense(np.stack(masks), labels, np.ones(len(masks))))
    parts = [one for number in range(len(given)) for one in _pieces(given[[number]])]
    return MaskSet.concatenate(parts).canonical()


def _pieces(one: MaskSet) -> Iterator[MaskSet]:
    """The parts of an object that touch in some slice or through one."""
    from scipy.ndimage import label

    regions, count = label(one.to_dense()[0])
    for number in range(1, count + 1):
        yield MaskSet.from_dense((regions == number)[None], one.labels, one.scores)


def ellipsoids(rng: Rng) -> list[Bools]:
    """Of all sizes; their middles keep apart along every axis, or evidence could not tell them apart."""
    masks, middles = [], list[NDArray[np.float64]]()
    for _ in range(200):
        radius = rng.uniform(2.5, 6, 3)
        middle = rng.uniform(radius, np.array(SHAPE) - radius)
        if any((np.abs(middle - other) < 3).sum() > 1 for other in middles):
            continue
        middles.append(middle)
        grid = np.indices(SHAPE) - middle[:, None, None, None]
        masks.append(((grid / radius[:, None, None, None]) ** 2).sum(0) <= 1)
        if len(masks) == 10:
            break
    return masks


def tubes(rng: Rng) -> list[Bools]:
    """Two leaning tubes from end to end that keep apart."""
    z, y, x = np.indices(SHAPE)
    masks = []
    for middle in (12, 30):
        lean = rng.uniform(-0.1, 0.1, 2)
        masks.append((y - 20 - lean[0] * z) ** 2 + (x - middle - lean[1] * z) ** 2 <= rng.uniform(3, 6) ** 2)
    return masks


def shells(rng: Rng) -> list[Bools]:
    """A ball inside a ball."""
    grid = np.indices(SHAPE) - np.array([12, 20, 22])[:, None, None, None]
    distance = np.sqrt((grid**2).sum(0))
    return [distance <= rng.uniform(9, 11), distance <= rng.uniform(3, 5)]
