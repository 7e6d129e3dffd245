"""The account of a conversion: what went where, and what else the checkpoint knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SHOWN = 8  # names a line of an account or an error shows; the rest are counted


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says beside its tensors. None or empty where it says nothing.

    classes: names by index. things: which of them are things. mean, std: of the input channels on the scale of 8-bit
    pixels (0..255). size: the side in pixels that pictures were brought to. thresholds: of post-processing, in 0..1.
    """

    classes: tuple[str, ...] = ()
    things: tuple[bool, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    ignore_index: int | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """What became of every tensor.

    loaded: the model's tensors that hold the checkpoint's values. renamed: of those, our name → the checkpoint's (a
    fused projection has three). adapted: of those, our name → how it was made to fit. fresh: our name → why it starts
    from nothing. left_over: the checkpoint's name → why it is not needed.
    """

    source: str
    loaded: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)
    left_over: Mapping[str, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.facts.classes

    @property
    def things(self) -> tuple[bool, ...] | None:
        return self.facts.things

    @property
    def mean(self) -> tuple[float, ...] | None:
        return self.facts.mean

    @property
    def std(self) -> tuple[float, ...] | None:
        return self.facts.std

    @property
    def thresholds(self) -> Mapping[str, float]:
        return self.facts.thresholds

    def describe(self) -> str:
        """The account in a few lines: counts, then each reason with the tensors it holds for."""
        lines = [
            f"{self.source}: {len(self.loaded)} tensors loaded ({len(self.renamed)} renamed), "
            f"{len(self.fresh)} fresh, {len(self.left_over)} left over"
        ]
        for title, reasons in (("adapted", self.adapted), ("fresh", self.fresh), ("left over", self.left_over)):
            by_reason: dict[str, list[str]] = {}
            for name, reason in reasons.items():
                by_reason.setdefault(reason, []).append(name)
            lines += [f"  {title}: {reason}: {name_some(names)}" for reason, names in by_reason.items()]
        return "\n".join(lines)


def name_some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
