"""How far a run has come, and what the learning rate is there. Time and steps obey one rule."""

from __future__ import annotations

# The first steps must move a little: detectron2's warm-up starts at this share of the rate, too.
WARMUP_START = 1e-3


def warmup_poly(progress: float, warmup: float, power: float) -> float:
    """Factor on the learning rate at `progress` in 0..1: linear rise over the share `warmup`, times
    (1 - progress) ** power. Ends at 0 with the run, whether the run is counted in steps or in minutes."""
    progress = min(max(progress, 0.0), 1.0)
    rise = 1.0 if progress >= warmup else WARMUP_START + (1 - WARMUP_START) * progress / warmup
    return float(rise * (1 - progress) ** power)


def progress_of(step: int, seconds: float, steps: int | None, minutes: float | None) -> float:
    """Share of the run that is done: of the steps where `steps` is given, else of the minutes."""
    if steps is not None:
        return step / steps
    assert minutes is not None, "TrainOptions checks that one of the two is given"
    return seconds / (60 * minutes)


def is_over(step: int, seconds: float, steps: int | None, minutes: float | None) -> bool:
    """True when no further step fits. With `minutes`, a step of average length must still fit in."""
    if steps is not None:
        return step >= steps
    average = seconds / step if step else 0.0
    return progress_of(step, seconds + average, steps, minutes) > 1
