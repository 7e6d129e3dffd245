"""What answers without a network reach on the frozen data: the floor under the first model of a name.

Their threshold is tuned on the data that judges, which makes them harder to beat than is fair. Two scores: IoU of
foreground, of whatever class, and panoptic quality of things, of whatever class, where the trivial objects are the
connected regions of the trivial foreground.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import numpy as np
from scipy.ndimage import label

from adapters.base import DomainAdapter
from maskformer.masks import MaskSet
from pipelines.metrics import match, pairs_of, without_ignored
from pipelines.promotion.frozen import Part
from pipelines.promotion.outputs import Outputs
from pipelines.promotion.quality import Floor
from pipelines.trivial import foreground_of, trivial_baselines, tune_threshold

SPECK = 0.25  # of the median true area: regions below may be left out, whichever is better


def floors_of_scenes(
    parts: Sequence[Part], adapter: DomainAdapter, foreground: float, of: Callable[[Part], Outputs]
) -> list[Floor]:
    """`foreground`: the candidate's IoU of any class against nothing; `of`: what it finds in a place."""
    with ExitStack() as stack:
        sources = [stack.enter_context(part.open(adapter)) for part in parts]
        pairs = [(source, part.truth) for source, part in zip(sources, parts, strict=True)]
        rows = trivial_baselines(pairs, pairs)
        floors = [Floor("foreground IoU", foreground, {name: row["foreground_iou"] for name, row in rows.items()})]
        thing = np.array(adapter.classes.is_thing)
        wanted = [_of_any_class(part.truth.objects, thing) for part in parts]
        if not sum(map(len, wanted)):
            return floors
        rule = tune_threshold(pairs)
        masks = [foreground_of(rule, source) for source in sources] if rule else []
    mine = object_quality(parts, [_of_any_class(of(part).objects, thing) for part in parts], wanted)
    everything = [MaskSet.from_dense(np.ones((1, *part.shape), bool), [0]) for part in parts]
    trivial = {"nothing": 0.0, "everything": object_quality(parts, everything, wanted)}
    if masks:
        regions = [MaskSet.from_label_map(label(mask)[0]) for mask in masks]
        least = SPECK * float(np.median(np.concatenate([one.areas for one in wanted])))
        large = [one[one.areas >= least] for one in regions]
        trivial["threshold's regions"] = max(object_quality(parts, one, wanted) for one in (regions, large))
    return [*floors, Floor("PQ of objects", mine, trivial)]


def object_quality(parts: Sequence[Part], found: Iterable[MaskSet], wanted: Iterable[MaskSet]) -> float:
    """Panoptic quality of objects of one class over all places; by boxes where labels are boxes. NaN without any."""
    shared, number = 0.0, 0
    for part, mine, theirs in zip(parts, found, wanted, strict=True):
        kept = without_ignored(mine, part.truth.ignore)
        pairs = pairs_of(kept, theirs, "box" if part.box_labels else "mask").above(0.5, strictly=True)
        shared += float(pairs.iou[match(pairs, pairs.iou)].sum())
        number += len(kept) + len(theirs)
    return 2 * shared / number if number else float("nan")


def _of_any_class(objects: MaskSet, thing: np.ndarray) -> MaskSet:
    """The things, as objects of one class."""
    chosen = objects[thing[objects.labels]]
    return chosen.with_labels(np.zeros(len(chosen), np.int64))
