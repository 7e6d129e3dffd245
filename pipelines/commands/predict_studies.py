"""`maskbridge predict` with a model of CT or MRI: a batch of studies, and a table of what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from adapters.errors import InputError
from pipelines.commands.checks import writable_folder
from pipelines.commands.predict import SCENE_ONLY, refuse

if TYPE_CHECKING:
    from adapters.base import DomainAdapter
    from pipelines.volumes.options import VolumeOptions
    from pipelines.volumes.source import VolumePath
    from pipelines.volumes.studies import Batch, BatchRules, StudyRow

# flag of the command -> field of VolumeOptions, where they differ
_FIELDS = {"min_volume": "min_volume_mm3", "plane": "planes", "fold": "folds"}
_EXECUTOR = {"executor", "workers", "threads"}
_OWN = {"model", "sources", "out", "dry_run", "overwrite", "test_time"} | _EXECUTOR

Way = Callable[[Sequence["VolumePath"], Path, "BatchRules"], "Batch"]


def run(model: str, sources: Sequence[str], out: Path, given: Mapping[str, Any]) -> None:
    """Predict studies; `given` are the flags the user typed. Exit code 3 where a study failed."""
    refuse(set(given) & (SCENE_ONLY - _EXECUTOR), "scenes, and this model predicts studies (CT, MRI)")
    _check_executor(given)
    options = volume_options(given)
    paths = [study_path(source) for source in sources]
    writable_folder(out)
    if given.get("dry_run"):
        raise typer.Exit(_foresee(paths, model, out, options))

    from pipelines.commands.progress import Progress
    from pipelines.tracked import predict_tracked
    from pipelines.volumes.studies import BatchRules

    predict = _way(model, options, given)
    with Progress() as progress, predict_tracked(model, f"{len(paths)} studies") as tracked:
        stage = _Stages(progress, len(paths))
        rules = BatchRules(overwrite=bool(given.get("overwrite")), on_progress=stage, on_study=stage.through)
        batch = predict(paths, out, rules)
        for row in batch.rows:
            if row.status == "done":
                tracked.wrote(out / row.folder)
    typer.echo(batch.table())
    if batch.exit_code:
        raise typer.Exit(batch.exit_code)


def _way(model: str, options: VolumeOptions, given: Mapping[str, Any]) -> Way:
    """How the batch is gone through: each study with a model of its own, several at a time, or one after the other."""
    if given.get("test_time"):
        from pipelines.adaptation.test_time import predict_studies_each

        return lambda paths, out, rules: predict_studies_each(paths, model, out, options, rules)
    if given.get("executor") == "process":
        from pipelines.volumes.study_pool import Processes, predict_in_processes

        processes = Processes(given.get("workers") or 2, given.get("threads"))
        return lambda paths, out, rules: predict_in_processes(paths, model, out, options, rules, processes)
    from pipelines.executors import threads
    from pipelines.volumes.studies import predict_studies, volume_predictor

    predictor = volume_predictor(model, options)

    def alone(paths: Sequence[VolumePath], out: Path, rules: BatchRules) -> Batch:
        with threads(given["threads"]) if "threads" in given else nullcontext():
            return predict_studies(paths, predictor, out, rules=rules)

    return alone


def _check_executor(given: Mapping[str, Any]) -> None:
    """InputError for what the executors of scenes have and those of studies have not."""
    kind = given.get("executor", "serial")
    if kind == "dask":
        raise InputError(
            "--executor dask: studies are not sent to a cluster, whose scheduler keeps and shows what it is given, "
            "names of patients among it; use --executor process, or the flow segment-studies"
        )
    if kind == "serial" and given.get("workers", 1) > 1:
        raise InputError("--workers: goes with --executor process")
    if kind == "process" and given.get("test_time"):
        raise InputError("--test-time: goes with --executor serial, for every study changes the model")


def volume_options(given: Mapping[str, Any]) -> VolumeOptions:
    """The options of the flags; what was not typed keeps its default."""
    from pipelines.volumes.options import VolumeOptions

    values = {_FIELDS.get(name, name): value for name, value in given.items() if name not in _OWN}
    return VolumeOptions(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def study_path(text: str) -> VolumePath:
    """What a word of the command line stands for: a path, or `t1=A.nii.gz,flair=B.nii.gz`: a file a channel."""
    if "=" not in text or Path(text).exists():
        return text
    parts = [part.partition("=") for part in text.split(",")]
    if any(not equals or not name or not path for name, equals, path in parts):
        raise InputError(f"{text}: expected a path, or channels as NAME=FILE,NAME=FILE")
    names = [name for name, _, _ in parts]
    if len(set(names)) < len(names):
        raise InputError(f"{text}: a channel is named twice")
    return {name: path for name, _, path in parts}


class _Stages:
    """Progress of the slices under the study's number, and a line a study that is through."""

    def __init__(self, progress: Any, total: int) -> None:
        self.progress, self.total, self.number = progress, total, 1

    def __call__(self, stage: str, done: int, total: int) -> None:
        name = stage if self.total == 1 or stage == "studies" else f"study {self.number} of {self.total}, {stage}"
        self.progress(name, done, total)

    def through(self, row: StudyRow, notes: Iterable[str]) -> None:
        """Say what was chosen and what became of it, on stderr: stdout is for the table."""
        for note in notes:
            typer.echo(f"study {row.study}: {note}", err=True)
        what = f"failed: {row.reason}" if row.status == "failed" else f"{row.status}, {row.objects} objects"
        typer.echo(f"study {row.study}: {what}", err=True)
        self.number = row.study + 1


def _foresee(paths: Sequence[VolumePath], model: str, out: Path, options: VolumeOptions) -> int:
    """Say what each study is and which series would be taken; nothing is predicted or written."""
    from pipelines.bundle import load_bundle
    from pipelines.volumes.resampling import plan_resampling
    from pipelines.volumes.source import open_volume

    adapter: DomainAdapter = load_bundle(model, check_shapes=False).adapter
    rules, failed = adapter.volume, 0
    assert rules is not None
    for number, path in enumerate(paths, start=1):
        try:
            with open_volume(
                path, adapter.channels, options.series, rule=rules.series,
                channel_axis=options.channel_axis, allow_uneven=options.allow_uneven,
            ) as source:  # fmt: skip
                grid = plan_resampling(source.geometry, rules.orientation, adapter.spacing)
                planes = options.planes or rules.planes
                slices = sum(grid.target.shape[axis] for axis in {grid.target.axis_of(plane) for plane in planes})
                lines = [
                    f"study {number} → {out}",
                    f"  scan     {source.geometry.describe()}",
                    f"  model    {grid.target.describe()}, {slices} slices",
                    *(f"  note     {note}" for note in source.notes),
                ]
        except InputError as error:
            failed = 3
            lines = [f"study {number}: would fail: {error}"]
        typer.echo("\n".join(lines))
    return failed
