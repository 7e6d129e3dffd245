"""One scene or study with a model of its own: its input and norm statistics, nothing learned, nothing kept of another.

`maskbridge predict --test-time` makes one for each of its sources, predicts with it, and throws it away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import InputError
from pipelines.adaptation.input_statistics import input_statistics
from pipelines.adaptation.norm_statistics import norm_statistics
from pipelines.adaptation.target import Effort, Subject, Target

if TYPE_CHECKING:
    from pipelines.volumes.options import VolumeOptions
    from pipelines.volumes.source import VolumePath
    from pipelines.volumes.studies import Batch, BatchRules, StudyRow

FOLDER = ".adapted-"


def test_time(subject: Subject, target: Target) -> Subject:
    """Raises InputError for more than one scene: the point is that each has its own."""
    if len(target.scenes) != 1:
        raise InputError(f"test_time: adapts to one scene at a time, {len(target.scenes)} were given")
    return norm_statistics(input_statistics(subject, target), target)


test_time.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest makes of the name


@contextmanager
def own_model(model: str | Path, source: Any, out: str | Path, effort: Effort = Effort()) -> Iterator[Path]:  # noqa: B008
    """A bundle of `model` adapted to one source alone, under `out` for as long as the context lasts.

    source: a scene's address, or whatever `open_volume` takes. InputError as the strategies.
    """
    from pipelines.adaptation.adapt import Request, save, subject_of
    from pipelines.bundle import load_bundle

    bundle = load_bundle(model)
    subject = test_time(subject_of(bundle), Target((source,), effort))
    Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=FOLDER, dir=out) as folder:
        name = f"{Path(bundle.name).name}-test-time"
        yield save(subject, bundle, Path(folder) / name, Request(("test_time",), effort))


def predict_studies_each(
    paths: Sequence[VolumePath], model: str | Path, out: str | Path, options: VolumeOptions, rules: BatchRules
) -> Batch:
    """As `pipelines.volumes.studies.predict_studies`, each study with a model of its own."""
    from pipelines.volumes.studies import Batch, StudyRow, predict_studies, write_summary

    rows: list[StudyRow] = []
    for number, path in enumerate(paths, start=rules.first):
        try:
            with own_model(model, path, out) as own:
                rows += predict_studies([path], own, out, options, replace(rules, first=number, summary=False)).rows
        except InputError as error:
            from pipelines.volumes.discretion import discreet

            reason = str(error) if options.keep_names else discreet(str(error), path, number)
            rows.append(StudyRow(number, "failed", reason=reason))
            if rules.on_study:
                rules.on_study(rows[-1], [])
    batch = Batch(tuple(rows))
    if rules.summary and rows:
        write_summary(Path(out) / "summary.csv", batch)
    return batch
