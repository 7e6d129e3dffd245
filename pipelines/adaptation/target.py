"""The unlabelled scenes to adapt to, and the model on its way. No label can be reached from here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.config import PredictOptions

STRIDE = 32  # of the coarsest features
LEAST = 2 * STRIDE  # pixels a side: the spread of a single feature is not defined


@dataclass(frozen=True)
class Effort:
    """What it may cost. crops: looked at for statistics; steps: of training, a round; rounds: of teaching."""

    crops: int = 64
    steps: int = 100
    rounds: int = 2
    batch: int = 4
    learning_rate: float = 2e-4
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """Addresses of scenes (or studies), which are opened for their pixels and nothing else."""

    scenes: tuple[str, ...]
    effort: Effort = Effort()
    predict: PredictOptions = PredictOptions()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        if not self.scenes:
            raise InputError("adaptation: no scene to adapt to")

    @contextmanager
    def opened(self, adapter: DomainAdapter) -> Iterator[list[Any]]:
        """The scenes as sources with the adapter's channels."""
        from pipelines.sources import open_for

        with ExitStack() as stack:
            yield [stack.enter_context(open_for(scene, adapter)) for scene in self.scenes]

    def crops(self, adapter: DomainAdapter) -> list[Tensor]:
        """`effort.crops` pictures (C, h, w) for the model; of studies slices, of scenes squares of the tile size."""
        if adapter.volume is not None:
            from pipelines.adaptation.studies import slices

            return slices(self.scenes, adapter, self.effort)
        with self.opened(adapter) as sources:
            return list(crops(sources, adapter, self.effort.crops, self.effort.seed))


@dataclass(frozen=True)
class Subject:
    """The model as far as it has been adapted. notes: what each strategy did, in numbers; JSON-ready.

    norms_known: whether its batch norms' statistics are those of the data it was trained on (`restate`).
    """

    model: nn.Module
    adapter: DomainAdapter
    thresholds: Mapping[str, float]
    task: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    norms_known: bool = True

    def noted(self, strategy: str, note: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.notes, strategy: dict(note)}


def crops(sources: Sequence[Any], adapter: DomainAdapter, count: int, seed: int) -> Iterator[Tensor]:
    """`count` squares (C, s, s) float32 of the adapter's tile size, sides multiples of 32, dealt out by area."""
    random = np.random.default_rng(seed)
    areas = np.array([np.prod(source.shape, dtype=float) for source in sources])
    for _ in range(count):
        yield crop_of(sources[int(random.choice(len(sources), p=areas / areas.sum()))], adapter, adapter.tile, random)


def crop_of(source: Any, adapter: DomainAdapter, side: int, random: np.random.Generator) -> Tensor:
    """One square at random, (C, s, s); a scene smaller than it is padded by zeros, the channels' means."""
    side = max(-(-min(side, max(source.shape)) // STRIDE) * STRIDE, LEAST)
    starts = [int(random.integers(0, max(length - side, 0) + 1)) for length in source.shape]
    window = tuple(slice(start, min(start + side, n)) for start, n in zip(starts, source.shape, strict=True))
    image = torch.from_numpy(adapter.inputs(*source.read(window)))
    return nn.functional.pad(image, (0, side - image.shape[-1], 0, side - image.shape[-2]))


def padded(image: Tensor) -> Tensor:
    """(C, h, w) padded by zeros below and to the right, as the network wants it."""
    down, right = (max(-(-length // STRIDE) * STRIDE, LEAST) - length for length in image.shape[-2:])
    return nn.functional.pad(image, (0, right, 0, down))
