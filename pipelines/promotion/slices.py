"""Rule `slices`: nowhere is the candidate more than the margin below the champion, however good its mean is.

Slices: each scene, each class in each domain, small, medium and large objects, dark and bright, sparse and crowded
blocks. A slice with few objects or blocks is shown and not judged: one object of fifty is two points already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics import SIZE_NAMES, MatchCounts
from pipelines.promotion.policy import Loss, Policy, Verdict, points
from pipelines.promotion.quality import Pairing


@dataclass(frozen=True)
class Facts:
    """Of U blocks: the scene each lies in, its mean brightness to the model (NaN without data), its true objects."""

    scenes: NDArray[np.str_]
    brightness: NDArray[np.float64]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Slice:
    """Blocks (U,) and classes (K,) that are scored by themselves."""

    name: str
    blocks: NDArray[np.bool_]
    classes: NDArray[np.bool_]


def check_slices(
    pairing: Pairing, slices: Iterable[Slice], sizes: Mapping[str, MatchCounts] | None, policy: Policy
) -> Verdict:
    """`sizes`: matches of `candidate` and `champion` by object size, see `metrics.f1_counts_by_size`."""
    rows: list[dict[str, Any]] = []
    losses = []
    for loss, judged in [*_of_blocks(pairing, slices, policy), *(_of_sizes(sizes, policy) if sizes else ())]:
        rows.append({"what": loss.what, "candidate": loss.candidate, "champion": loss.champion, "judged": judged})
        if judged and not loss.change >= -policy.margin:
            losses.append(loss)
    judged_rows = sum(bool(row["judged"]) for row in rows)
    if losses:
        worst = min(losses, key=lambda one: one.change if np.isfinite(one.change) else -1)
        more = f"; and {len(losses) - 1} more" if len(losses) > 1 else ""
        return Verdict("slices", False, f"{worst}, allowed {points(-policy.margin)}{more}", {"rows": rows})
    says = f"{judged_rows} slices, none drops more than {points(policy.margin).lstrip('+')}"
    return Verdict("slices", True, says, {"rows": rows})


def classes_in_domains(pairing: Pairing) -> Iterator[Slice]:
    """Every class in every domain."""
    for domain in np.unique(pairing.domains).tolist():
        for index, name in enumerate(pairing.names):
            one = np.arange(len(pairing.names)) == index
            yield Slice(f"class {name} in domain {domain}", pairing.domains == domain, one)


def of_scenes(pairing: Pairing, facts: Facts) -> Iterator[Slice]:
    """The slices of scenes."""
    everything = np.ones(len(pairing.names), bool)
    for scene in np.unique(facts.scenes).tolist():
        yield Slice(f"scene {scene}", facts.scenes == scene, everything)
    yield from classes_in_domains(pairing)
    known = np.isfinite(facts.brightness)
    middle = np.median(facts.brightness[known]) if known.any() else 0.0
    yield Slice("dark blocks", known & (facts.brightness < middle), everything)
    yield Slice("bright blocks", known & (facts.brightness >= middle), everything)
    filled = facts.objects > 0
    crowd = np.median(facts.objects[filled]) if filled.any() else 0.0
    yield Slice("sparse blocks", filled & (facts.objects <= crowd), everything)
    yield Slice("crowded blocks", filled & (facts.objects > crowd), everything)


def _of_blocks(pairing: Pairing, slices: Iterable[Slice], policy: Policy) -> Iterator[tuple[Loss, bool]]:
    for one in slices:
        weights = one.blocks[None].astype(float)
        mine, theirs = pairing.candidate.summed(weights), pairing.champion.summed(weights)
        mask = one.classes & pairing.occurs(one.blocks)
        true = (mine.tp + mine.fn)[0, mask].sum()
        for name, (score, blocks) in pairing.scores(mask, one.blocks).items():
            many = name == pairing.candidate.NAMES[0] or true >= policy.least_objects
            enough = blocks >= policy.least_blocks and many
            yield Loss(f"{name} of {one.name}", float(score(mine)[0]), float(score(theirs)[0])), bool(enough)


def _of_sizes(sizes: Mapping[str, MatchCounts], policy: Policy) -> Iterator[tuple[Loss, bool]]:
    mine, theirs = sizes["candidate"], sizes["champion"]
    true = theirs.tp + theirs.fn
    for index, name in enumerate(SIZE_NAMES):
        if true[index]:
            loss = Loss(f"F1 of {name} objects", float(mine.f1()[index]), float(theirs.f1()[index]))
            yield loss, bool(true[index] >= policy.least_objects)
