"""The rules in their order, over a candidate and the champion it would replace.

What makes the later rules meaningless ends the row: wrong data, another signature, numbers that are not finite. All
other rules are asked, so that a refusal names everything that is wrong with a model at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base import DomainAdapter
from pipelines.bundle import Bundle
from pipelines.config import PredictOptions
from pipelines.metrics import UNSEEN, MatchCounts, f1_counts_by_size
from pipelines.promotion.budget import Ground, check_budget
from pipelines.promotion.data import Expected, check_data
from pipelines.promotion.finite import RULE as FINITE
from pipelines.promotion.finite import check_weights
from pipelines.promotion.floor import floors_of_scenes
from pipelines.promotion.frozen import FrozenData, Part
from pipelines.promotion.grid_shift import Shift, check_shift, measure_shift
from pipelines.promotion.identity import check_identity
from pipelines.promotion.outputs import Artifact, NotFinite, Outputs
from pipelines.promotion.policy import Policy, Verdict
from pipelines.promotion.quality import Pairing, check_baseline, check_quality
from pipelines.promotion.shadow import check_shadow, compare, last_scenes, windows_of
from pipelines.promotion.signature import check_signature
from pipelines.promotion.slices import Facts, check_slices, of_scenes
from pipelines.promotion.units import Counts, block_of, class_ids, count
from pipelines.sources import open_for

Progress = Callable[..., None]  # (stage, done, total)
RULES = ("data", "signature", FINITE, "identity", "grid_shift", "quality", "slices", "budget", "shadow")
BUDGET_SIDE = 1024  # pixels a side of the ground that is timed, at most


@dataclass(frozen=True)
class Report:
    """All verdicts. `complete`: no rule was skipped because an earlier one ended the row."""

    verdicts: tuple[Verdict, ...]
    digest: str
    contents: dict[str, str]
    complete: bool

    @property
    def passed(self) -> bool:
        return self.complete and all(verdict.passed for verdict in self.verdicts)

    @property
    def refused_by(self) -> tuple[str, ...]:
        """The rules that said no."""
        return tuple(verdict.rule for verdict in self.verdicts if not verdict.passed)

    @property
    def refusal(self) -> str:
        """In a line: which rules, and by how much."""
        return "; ".join(f"{v.rule}: {v.says}" for v in self.verdicts if not v.passed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rules = [
            {"rule": v.rule, "passed": v.passed, "says": v.says, "numbers": dict(v.numbers)} for v in self.verdicts
        ]
        return {"passed": self.passed, "data_digest": self.digest, "data": self.contents, "rules": rules}


@dataclass
class Judged:
    """One model on the frozen data; everything is computed when first asked for, and kept."""

    artifact: Artifact
    gate: Gate = field(repr=False)

    @cached_property
    def evaluation(self) -> tuple[Counts, MatchCounts, float]:
        """Counts by block, matches by object size, and the IoU of any class against nothing."""
        data, adapter = self.gate.data, self.gate.data.adapter
        counts, sizes, same, either = [], [], 0, 0
        for number, part in enumerate(data.parts, start=1):
            outputs = self.of(part)
            counts.append(count(part, outputs, adapter.classes, adapter.covers))
            thing = np.array(adapter.classes.is_thing)
            found, wanted = (o[thing[o.labels]] for o in (outputs.objects, part.truth.objects))
            sizes.append(f1_counts_by_size(found, wanted))
            seen = outputs.ids != UNSEEN
            if part.truth.ignore is not None:
                seen = seen & ~part.truth.ignore
            mine, true = (outputs.ids > 0) & seen, (class_ids(part.truth.objects) > 0) & seen
            same, either = same + int((mine & true).sum()), either + int((mine | true).sum())
            self.gate.tell(f"score {self.artifact.bundle.folder.name}", number, len(data.parts))
        summed = sizes[0]
        for one in sizes[1:]:
            summed = summed + one
        return Counts.joined(counts), summed, same / either if either else float("nan")

    def of(self, part: Part) -> Outputs:
        """What it finds in a scored place."""
        return self.over(part.path, (part.window[0], part.window[1]))

    @cached_property
    def shift(self) -> Shift | None:
        return measure_shift(self.artifact, self.gate.data.parts)

    @cached_property
    def _seen(self) -> dict[tuple[str, str], Outputs]:
        return {}

    def over(self, path: Path, window: tuple[slice, slice]) -> Outputs:
        """What it finds in a window of a scene; kept, for the shadow run may look at the scenes that were scored."""
        key = (str(path.resolve()), str(window))
        if key not in self._seen:
            with open_for(path, self.artifact.adapter) as source:
                self._seen[key] = self.artifact(source.view(window))
        return self._seen[key]


class Gate:
    """Judges candidates on `data`. `shadow`: files or folders of scenes for the shadow run, by default the data's own.

    What the champion gives is computed once, however many candidates come.
    """

    def __init__(
        self,
        data: FrozenData,
        policy: Policy | None = None,
        shadow: Sequence[str | Path] = (),
        on_progress: Progress | None = None,
    ) -> None:
        self.data = data
        self.policy = policy or Policy()
        self.shadow = tuple(shadow)
        self.machine: PredictOptions = data.configs[0].predict
        self._on_progress = on_progress
        self._champion: tuple[str, Any] | None = None

    def judge(self, candidate: Bundle, champion: Bundle | None = None, expected: Expected | None = None) -> Report:
        """Ask the rules. InputError for data or scenes that cannot be read; a model is refused, never an error."""
        verdicts: list[Verdict] = []
        complete = False
        with suppress(_Ended):
            self._ask(verdicts, candidate, champion, expected or Expected())
            complete = True
        return Report(tuple(verdicts), self.data.digest, dict(self.data.contents), complete)

    def tell(self, stage: str, done: int, total: int) -> None:
        if self._on_progress:
            self._on_progress(stage, done, total)

    def _ask(self, verdicts: list[Verdict], candidate: Bundle, champion: Bundle | None, expected: Expected) -> None:
        def final(verdict: Verdict) -> None:
            verdicts.append(verdict)
            if not verdict.passed:
                raise _Ended

        final(check_data(self.data, expected, candidate.provenance))
        final(check_signature(candidate.adapter, champion.adapter if champion else None, self.data.parts))
        final(check_weights(candidate.build()))
        mine = self._ready(candidate)
        theirs = self._judged(champion) if champion else None
        try:
            for verdict in self._rules(mine, theirs):
                verdicts.append(verdict)
        except NotFinite as error:
            kept = [verdict for verdict in verdicts if verdict.rule != FINITE]
            verdicts[:] = [*kept, Verdict(FINITE, False, str(error))]
            raise _Ended from error

    def _ready(self, bundle: Bundle) -> Any:
        return Judged(Artifact(bundle, self.machine), self)

    def _rules(self, mine: Judged, theirs: Judged | None) -> Iterator[Verdict]:
        """The rules that look at what the model gives; all of them are asked."""
        yield check_identity(mine.artifact.adapter, mine.artifact.options)
        yield check_shift(mine.shift, theirs.shift if theirs else None, self.policy)
        yield from self._scores(mine, theirs)
        scenes = self._scenes(self.data.adapter)
        champion = theirs.artifact.bundle if theirs else None
        yield check_budget(mine.artifact.bundle, champion, self._ground(scenes), self.machine, self.policy)
        over = theirs.over if theirs else None
        yield check_shadow(compare(scenes, mine.over, over, self.data.adapter.classes.names), self.policy)

    def _scores(self, mine: Judged, theirs: Judged | None) -> list[Verdict]:
        counts, sizes, foreground = mine.evaluation
        if theirs is None:
            floors = floors_of_scenes(self.data.parts, self.data.adapter, foreground, mine.of)
            return [check_baseline(floors)]
        adapter = self.data.adapter
        pairing = Pairing(
            counts, theirs.evaluation[0], self._domains, adapter.classes.names, np.array(adapter.classes.is_thing)
        )
        both = {"candidate": sizes, "champion": theirs.evaluation[1]}
        facts = Facts(self._of_blocks("name"), self._brightness, (counts.tp + counts.fn).sum(1).astype(np.int64))
        slices = of_scenes(pairing, facts)
        return [check_quality(pairing, self.policy), check_slices(pairing, slices, both, self.policy)]

    def _judged(self, champion: Bundle) -> Any:
        if self._champion is None or self._champion[0] != champion.digest:
            self._champion = champion.digest, self._ready(champion)
        return self._champion[1]

    def _scenes(self, adapter: DomainAdapter) -> list[tuple[Path, tuple[slice, slice]]]:
        places = self.shadow or list(dict.fromkeys(part.path for part in self.data.parts))
        scenes = last_scenes(places, self.policy.shadow_scenes)
        return list(windows_of(scenes, adapter, self.policy.shadow_side))

    def _ground(self, scenes: Sequence[tuple[Path, tuple[slice, slice]]]) -> Ground:
        """The largest piece of ground there is, up to `BUDGET_SIDE`."""
        places = [*scenes, *((part.path, (part.window[0], part.window[1])) for part in self.data.parts)]
        path, window = max(places, key=lambda one: min(_sides(one[1])) * max(_sides(one[1])))
        return Ground(path, tuple((part.start, min(part.stop, part.start + BUDGET_SIDE)) for part in window))

    @property
    def _domains(self) -> np.ndarray:
        return self._of_blocks("domain")

    def _of_blocks(self, name: str) -> np.ndarray:
        """(U,) an attribute of each block's part."""
        return np.concatenate(
            [np.full(block_of(part.shape)[-1, -1] + 1, getattr(part, name)) for part in self.data.parts]
        )

    @cached_property
    def _brightness(self) -> np.ndarray:
        """(U,) mean of what the reference model is fed, NaN where a block has no data."""
        means = []
        for part in self.data.parts:
            with part.open(self.data.adapter) as source:
                array, valid = source.read(None)
            blocks = block_of(part.shape)
            values = self.data.adapter.inputs(array, valid).mean(0)
            number = np.bincount(blocks[valid], minlength=blocks[-1, -1] + 1)
            total = np.bincount(blocks[valid], values[valid], blocks[-1, -1] + 1)
            means.append(np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0))
        return np.concatenate(means)


class _Ended(Exception):
    """A rule said no and the ones behind it are not asked."""


def _sides(window: tuple[slice, slice]) -> tuple[int, int]:
    return window[0].stop - window[0].start, window[1].stop - window[1].start
