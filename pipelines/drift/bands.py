"""Are the scenes that come in still like those the model was trained on? A band at a time, by mean and spread.

The adapter carries mean and standard deviation of its training data; what has come since is compared with them. A shift
of a trained standard deviation, or a spread of half or of twice, is what another sensor, another season or another
processing level looks like. That is a reason to look, and no proof that the model has become worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.config import Strict


class DriftLimits(Strict):
    """From where on a band is told of."""

    shift: float = Field(1.0, gt=0, description="of the mean, in standard deviations of the training data")
    spread: float = Field(2.0, gt=1, description="factor between the standard deviations, either way")
    share: float = Field(0.5, gt=0, le=1, description="of the scenes that must be beyond a limit")


@dataclass(frozen=True)
class BandDrift:
    """One band of one scene against the training data."""

    scene: str
    band: str
    mean: float
    trained_mean: float
    std: float
    trained_std: float

    @property
    def shift(self) -> float:
        """How far the mean moved, in trained standard deviations."""
        return abs(self.mean - self.trained_mean) / self.trained_std

    @property
    def spread(self) -> float:
        """The larger standard deviation over the smaller one."""
        low, high = sorted((self.std, self.trained_std))
        return high / low if low > 0 else math.inf

    def is_beyond(self, limits: DriftLimits) -> bool:
        return self.shift > limits.shift or self.spread > limits.spread

    def to_dict(self) -> dict[str, Any]:
        spread = round(self.spread, 3) if math.isfinite(self.spread) else None
        return {**asdict(self), "shift": round(self.shift, 3), "spread": spread}


def bands_of(scenes: Sequence[str], adapter: DomainAdapter) -> list[BandDrift]:
    """Every band of every scene, read in windows. InputError where the adapter knows no statistics, or no scene any."""
    from pipelines.scene_report import trained_statistics

    trained = {name: pair for name, pair in trained_statistics(adapter.channels).items() if pair[1] > 0}
    if not trained:
        raise InputError("the model's adapter scales by fixed windows and knows no statistics to compare with")
    rows = [row for scene in scenes for row in _bands(scene, adapter, trained)]
    if scenes and not rows:
        raise InputError(f"{scenes[0]}: no valid pixels in any scene")
    return rows


def drifted(rows: Sequence[BandDrift], limits: DriftLimits) -> list[str]:
    """Bands that are beyond a limit in at least `limits.share` of the scenes, in their order."""
    found = []
    for band in dict.fromkeys(row.band for row in rows):
        mine = [row.is_beyond(limits) for row in rows if row.band == band]
        if sum(mine) >= limits.share * len(mine):
            found.append(band)
    return found


def _bands(scene: str, adapter: DomainAdapter, trained: dict[str, tuple[float, float]]) -> Iterator[BandDrift]:
    from pathlib import Path

    from pipelines.report_overview import band_statistics
    from pipelines.sources import open_for

    with open_for(scene, adapter) as source:
        for row in band_statistics(source, trained):
            if row.name in trained and math.isfinite(row.mean):
                yield BandDrift(
                    Path(scene).name, row.name, row.mean, trained[row.name][0], row.std, trained[row.name][1]
                )
