"""`maskbridge predict` with a model of photos: pictures or folders of them; results as the picture sets have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from pipelines.commands.checks import writable_folder
from pipelines.commands.predict import PARTIAL, SCENE_ONLY, refuse, run_name

_OWN = {"tile", "overlap", "min_area"}  # of the scenes' options, those that photos have too
_OPTIONS = _OWN | {"task", "score", "tta", "device", "precision"}


def run(model: str, sources: Sequence[str], out: Path, given: Mapping[str, Any]) -> None:
    """Predict pictures; `given` are the flags the user typed. Exit code 3 where a picture failed."""
    refuse(set(given) & (SCENE_ONLY - _OWN | {"batch"}), "scenes, and this model predicts photos")
    from pipelines.config import PredictOptions
    from pipelines.picture_runs import pictures_of

    options = PredictOptions(**{name: value for name, value in given.items() if name in _OPTIONS})
    found = [pictures_of(source) for source in sources]
    writable_folder(out)
    if given.get("dry_run"):
        typer.echo(f"{sum(map(len, found))} pictures → {out}")
        return

    from pipelines.commands.progress import Progress
    from pipelines.picture_prediction import predict_pictures
    from pipelines.tracked import predict_tracked

    failed: dict[str, str] = {}
    with Progress() as progress, predict_tracked(model, run_name(sources)) as tracked:
        for source in sources:
            result = predict_pictures(
                model, source, out, options, overwrite=bool(given.get("overwrite")), on_progress=progress
            )
            failed |= result.failed
        tracked.wrote(result.out)
    for name, line in failed.items():
        typer.echo(f"warning: {name}: {line}", err=True)
    objects = sum(record["objects"] for record in result.records)
    typer.echo(f"{objects} objects in {len(result.records)} pictures", err=True)
    typer.echo(str(out))
    if failed:
        raise typer.Exit(PARTIAL)
