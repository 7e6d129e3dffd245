"""Rule `quality`: not worse than the champion in any domain or class, and better in one primary score.

Both models are counted on the same blocks, and the same draws of blocks give both models' scores: the paired bootstrap
(Efron and Tibshirani 1993, percentile bounds). A domain or class passes where the lower bound of candidate minus
champion stays above the margin. All of them have to pass, so no bound needs a correction for their number; the two
primary scores, of which one must be better, do (Bonferroni). Blocks of one scene are neighbours, not strangers: bounds
are a little too narrow, and more scenes help more than larger ones.

Units are blocks of scenes, scored by IoU and PQ; of volumes patients, scored by Dice and the F1 of lesions.

Rule `baseline` takes its place where there is no champion: better than every answer that needs no network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.promotion.policy import Loss, Policy, Verdict, points
from pipelines.promotion.units import Counts

Floats = NDArray[np.float64]
Score = Callable[[Counts], Floats]  # counts (S, K) → scores (S,)


@dataclass(frozen=True)
class Pairing:
    """Both models' counts over the same U blocks. domains (U,): each block's; names, things (K,): of the classes."""

    candidate: Counts
    champion: Counts
    domains: NDArray[np.str_]
    names: tuple[str, ...]
    things: NDArray[np.bool_]

    def draws(self, policy: Policy) -> Floats:
        """(S, U) how often each draw takes each block; domains keep their number of blocks."""
        rng = np.random.default_rng(policy.seed)
        weights = np.zeros((policy.samples, len(self.domains)))
        for domain in np.unique(self.domains):
            members = np.flatnonzero(self.domains == domain)
            weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), policy.samples)
        return weights

    def occurs(self, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """(K,) whether a class has a true pixel or object in the chosen blocks."""
        return self._blocks_with(chosen) > 0

    def _blocks_with(self, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """(K,) chosen blocks with something true of the class."""
        there = (self.candidate.true > 0) | (self.candidate.tp + self.candidate.fn > 0)
        return (there if chosen is None else there[chosen]).sum(0)

    def scores(self, mask: NDArray[np.bool_], chosen: NDArray[np.bool_] | None = None) -> dict[str, tuple[Score, int]]:
        """The scores of the classes in `mask`: name → (how, blocks that say something about it)."""
        blocks = self._blocks_with(chosen)
        things = mask & self.things
        found: dict[str, tuple[Score, int]] = {}
        of_pixels, of_objects = self.candidate.NAMES
        if mask.any():
            found[of_pixels] = (lambda counts: _mean(counts.of_pixels()[:, mask]), int(blocks[mask].max()))
        if things.any():
            found[of_objects] = (lambda counts: _mean(counts.of_objects()[:, things]), int(blocks[things].max()))
        return found


def check_quality(pairing: Pairing, policy: Policy) -> Verdict:
    """Non-inferior in every domain and class that occurs, and better overall in one of the primary scores."""
    draws = pairing.draws(policy)
    losses, rows = [], []
    for what, mask, chosen in _groups(pairing):
        weights = draws if chosen is None else draws * chosen
        once = np.ones((1, len(pairing.domains))) if chosen is None else chosen[None].astype(float)
        for name, (score, blocks) in pairing.scores(mask, chosen).items():
            loss = _compare(f"{name} of {what}", score, pairing, once)
            trusted = blocks >= policy.least_blocks
            worst = _bound(score, pairing, weights, policy.confidence) if trusted else None
            loss = Loss(loss.what, loss.candidate, loss.champion, worst)
            rows.append(_row(loss, blocks))
            if not (loss.change if worst is None else worst) >= -policy.margin:  # NaN fails
                losses.append(loss)
    if losses:
        worst_first = sorted(losses, key=lambda one: one.change if np.isfinite(one.change) else -1)
        more = f"; and {len(losses) - 1} more" if len(losses) > 1 else ""
        says = f"{worst_first[0]}, allowed {points(-policy.margin)}{more}"
        return Verdict("quality", False, says, {"rows": rows})
    return _better(pairing, draws, policy, rows)


def _better(pairing: Pairing, draws: Floats, policy: Policy, rows: list[dict[str, Any]]) -> Verdict:
    """The other half of the rule: some gain that is no accident."""
    primary = pairing.scores(pairing.occurs())
    confidence = 1 - (1 - policy.confidence) / max(1, len(primary))
    found = []
    for name, (score, _) in primary.items():
        change = _compare(name, score, pairing, np.ones((1, len(pairing.domains))))
        found.append(Loss(name, change.candidate, change.champion, _bound(score, pairing, draws, confidence)))
    numbers = {"rows": rows, "primary": [_row(one, len(pairing.domains)) for one in found]}
    better = [one for one in found if one.worst is not None and one.worst > 0]
    if better:
        return Verdict("quality", True, f"better: {better[0]}; no domain or class is worse", numbers)
    shown = "; ".join(map(str, found)) or "no class occurs in the data"
    return Verdict("quality", False, f"no primary score is better: {shown}", numbers)


@dataclass(frozen=True)
class Floor:
    """A score of the candidate, and what the answers that need no network have of it (None: not defined)."""

    score: str
    candidate: float
    trivial: Mapping[str, float | None]

    @property
    def best(self) -> tuple[str, float] | None:
        """The answer that is best, and its score; None where nothing says anything."""
        known = {name: value for name, value in self.trivial.items() if value is not None}
        return max(known.items(), key=lambda one: one[1]) if known else None

    @property
    def is_beaten(self) -> bool:
        return self.best is not None and self.candidate > self.best[1]  # False for NaN

    def __str__(self) -> str:
        assert self.best is not None, "asked after it was found that there is one"
        name, value = self.best
        says = f"{self.score} {self.candidate:.3f}, the best trivial answer ({name}) {value:.3f}"
        return says if self.is_beaten else f"{says}: {points(self.candidate - value)}, it must be above"


def check_baseline(floors: Sequence[Floor]) -> Verdict:
    """The first model of a name: it beats every answer without a network in every one of the scores."""
    told = [floor for floor in floors if floor.best is not None]
    if not told:
        return Verdict("baseline", False, "nothing to find in the data: no score says anything")
    numbers = {floor.score: {"candidate": floor.candidate, "trivial": dict(floor.trivial)} for floor in told}
    return Verdict("baseline", all(floor.is_beaten for floor in told), "; ".join(map(str, told)), numbers)


def _groups(
    pairing: Pairing,
) -> Sequence[tuple[str, NDArray[np.bool_], NDArray[np.bool_] | None]]:
    """(in words, classes (K,), blocks (U,) or all): every domain, then every class."""
    domains = [
        (f"domain {name}", pairing.occurs(pairing.domains == name), pairing.domains == name)
        for name in np.unique(pairing.domains).tolist()
    ]
    classes = [
        (f"class {name}", np.arange(len(pairing.names)) == index, None)
        for index, name in enumerate(pairing.names)
        if pairing.occurs()[index]
    ]
    return [*domains, *classes]


def _compare(what: str, score: Score, pairing: Pairing, weights: Floats) -> Loss:
    mine, theirs = (float(score(counts.summed(weights))[0]) for counts in (pairing.candidate, pairing.champion))
    return Loss(what, mine, theirs)


def _bound(score: Score, pairing: Pairing, weights: Floats, confidence: float) -> float:
    """Lower bound of candidate minus champion over the draws in which both are defined."""
    change = score(pairing.candidate.summed(weights)) - score(pairing.champion.summed(weights))
    known = change[np.isfinite(change)]
    return float(np.quantile(known, 1 - confidence)) if len(known) else float("nan")


def _mean(values: Floats) -> Floats:
    """(S, K) → (S,) mean of what is defined."""
    known = np.isfinite(values)
    total, number = np.where(known, values, 0).sum(1), known.sum(1)
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def _row(loss: Loss, blocks: int) -> dict[str, Any]:
    return {
        "what": loss.what,
        "candidate": _number(loss.candidate),
        "champion": _number(loss.champion),
        "worst": _number(loss.worst),
        "blocks": blocks,
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 6)
