"""Adaptation and drift as tracked runs, as `pipelines.tracked` does it for training, evaluation and prediction."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.base import DomainAdapter
from pipelines.bundle import Bundle, load_bundle
from pipelines.model_card import CARD
from pipelines.tracked import KIND_TAG, is_on, keep_config, keep_model
from pipelines.tracking import EXPERIMENT, track

if TYPE_CHECKING:
    from pipelines.adaptation.adapt import Adaptation, Request
    from pipelines.drift.features import Drift


def adapt_tracked(model: str | Path, scenes: Sequence[str], out: str | Path, request: Request) -> Adaptation:
    """`pipelines.adaptation.adapt.adapt` inside an MLflow run: scores side by side, what was done, verdict, digests."""
    from pipelines.adaptation.adapt import adapt

    if not is_on():
        return adapt(model, scenes, out, request)
    source = load_bundle(model, check_shapes=False)
    with track(f"adapt {source.adapter.name}", experiment=EXPERIMENT, system_metrics=True) as run:
        run.tag(KIND_TAG, "adapt")
        keep_model(run, source)
        run.params({"strategies": list(request.strategies), "effort": asdict(request.effort)})
        if request.scored_on is not None:
            keep_config(run, request.scored_on)
        made = adapt(model, scenes, out, request)
        run.metrics({"score": {name.replace(" ", "_"): scores for name, scores in made.scores.items()}})
        run.tag("better", {True: "yes", False: "no", None: "not known"}[made.better])
        run.data(digests_of(scenes, source.adapter), "target")
        differences = {name: one.to_dict() for name, one in made.verdict.differences.items()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "adaptation.json"
            file.write_text(json.dumps({**made.notes, "differences": differences}, indent=2) + "\n", encoding="utf-8")
            run.artifact(file)
        if made.bundle is not None:
            run.tag("adapted.sha256", load_bundle(made.bundle, check_shapes=False).sha256)
            run.artifact(made.bundle / CARD)
    return made


def tell_drift(bundle: Bundle, scenes: Sequence[str], found: Drift, files: Sequence[Path] = ()) -> None:
    """A run with drift's number and its parts, over the scenes' digests; `files` go along."""
    if not is_on():
        return
    with track(f"drift {bundle.adapter.name}", experiment=EXPERIMENT) as run:
        run.tag(KIND_TAG, "drift")
        keep_model(run, bundle)
        told: dict[str, Any] = found.to_dict()
        run.metrics({name: value for name, value in told.items() if isinstance(value, int | float)})
        run.metrics({"bands": told["bands"]})
        run.data(digests_of(scenes, bundle.adapter), "drift")
        for file in files:
            run.artifact(file)


def digests_of(scenes: Sequence[str], adapter: DomainAdapter) -> dict[str, str]:
    """{name: sha256} of scenes; of studies, whose names may be patients', the name is the first digits of the hash."""
    if adapter.volume is not None:
        from pipelines.adaptation.studies import opened as open_study

        digests = [_digest(open_study(study, adapter)) for study in scenes]
        return {digest[:12]: digest for digest in digests}
    from pipelines.sources import open_for

    return {Path(scene).name: _digest(open_for(scene, adapter)) for scene in scenes}


def _digest(source: Any) -> str:
    with source as opened:
        return str(opened.digest())
