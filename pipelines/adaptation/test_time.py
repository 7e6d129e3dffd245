"""One scene with a model of its own: its input and norm statistics, nothing learned, nothing kept of another scene."""

from __future__ import annotations

from adapters.errors import InputError
from pipelines.adaptation.input_statistics import input_statistics
from pipelines.adaptation.norm_statistics import norm_statistics
from pipelines.adaptation.target import Subject, Target


def test_time(subject: Subject, target: Target) -> Subject:
    """Raises InputError for more than one scene: the point is that each has its own."""
    if len(target.scenes) != 1:
        raise InputError(f"test_time: adapts to one scene at a time, {len(target.scenes)} were given")
    return norm_statistics(input_statistics(subject, target), target)


test_time.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest makes of the name
