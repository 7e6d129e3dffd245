"""Train and evaluate by a run config: data → model → fit → tune → score on the held-out place → bundle.

Scores are taken after stitching, on the held-out part as a whole, and beside them always stand the trivial
baselines and, where the config asks for it, a per-pixel network trained by this same code for the same time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from adapters.errors import InputError
from maskformer.config import ModelConfig
from maskformer.losses import build_criterion
from pipelines.adaptation.reference import remember
from pipelines.assembly import predict_in_memory
from pipelines.bundle import load_bundle, save_bundle
from pipelines.checkpoints import NAME as CHECKPOINT
from pipelines.config import ModelOptions, PredictOptions, RunConfig, TrainOptions
from pipelines.datasets import CropDataset, Part, Sampling
from pipelines.evaluation import combine, evaluate_scene
from pipelines.labelled import LabelledData, load_adapter
from pipelines.predictor import Predictor, default_task, settle
from pipelines.sinks.folder import atomic_write
from pipelines.splits import Place
from pipelines.starting import build
from pipelines.training import FitResult, fit
from pipelines.trivial import most_common_class, trivial_baselines
from pipelines.tuning import tune

log = logging.getLogger(__name__)
Progress = Callable[..., None]  # (stage, done, total, **notes)
OnRow = Callable[[str, dict[str, float]], None]  # (preset, a row of its history)


@dataclass(frozen=True)
class Outcome:
    """What training left: the bundle's folder, and `metrics.json` as a dict."""

    bundle: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """One network after training: its thresholds and scores on the held-out place, what it remembers of its data."""

    model: nn.Module
    config: ModelConfig
    options: TrainOptions
    predict: PredictOptions
    fitted: FitResult
    thresholds: dict[str, float]
    scores: dict[str, Any]
    reference: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Watch:
    """Passes the rows of a training on to whoever watches."""

    on_progress: Progress | None
    on_row: OnRow | None

    def of(self, preset: str, options: TrainOptions) -> Callable[[dict[str, float]], None]:
        """A taker of history rows; the stage begins now, so that its clock does too."""
        by_steps = options.steps is not None
        total = float(options.steps or 60 * (options.minutes or 0))
        if self.on_progress:
            self.on_progress(f"train {preset}", 0, total)

        def row_came(row: dict[str, float]) -> None:
            if self.on_progress:
                done = min(row["step"] if by_steps else row["seconds"], total)
                self.on_progress(f"train {preset}", done, total, loss=row.get("total"))
            if self.on_row:
                self.on_row(preset, row)

        return row_came

    def tiles(self, stage: str) -> Callable[[int, int], None]:
        def tile_done(done: int, total: int) -> None:
            if self.on_progress:
                self.on_progress(f"{stage}: tiles", done, total)

        return tile_done


def train(
    config: RunConfig,
    out: str | Path,
    *,
    minutes: float | None = None,
    seed: int | None = None,
    resume: bool = False,
    on_progress: Progress | None = None,
    on_row: OnRow | None = None,
) -> Outcome:
    """Train the config's model and its baseline; leave `out/bundle/`, `out/baseline/` and `out/metrics.json`.

    Volumes go their own way, see `pipelines.volumes.experiments`.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    config = changed(config, minutes, seed)
    watch = Watch(on_progress, on_row)
    if load_adapter(config).volume is not None:
        from pipelines.volumes.experiments import train_volumes

        return train_volumes(config, out, resume, watch)
    if resume and not (out / "checkpoints" / CHECKPOINT).exists():
        raise InputError(f"{out}: nothing to resume; no checkpoint of an earlier run is there")
    with LabelledData(config) as data:
        if not data.split.train:
            raise InputError(f"{config.data[0].source}: the split leaves nothing to train on; see `split` and `role`")
        trained = _train_one(config, config.model, config.train, data, out / "checkpoints", resume, watch)
        baselines: dict[str, Any] = {"trivial": _trivial(data)}
        beside = None
        if config.baseline:
            model, options = baseline_settings(config)
            beside = _train_one(config, model, options, data, out / "baseline-checkpoints", resume, watch)
            baselines["unet"] = {**beside.scores, "training": training_facts(beside)}
            _save(out / "baseline", beside, data, {"heldout": beside.scores})
        metrics = {"heldout": trained.scores, "baseline": baselines}
        folder = _save(out / "bundle", trained, data, metrics, beside)
        scored_on = "held-out place" if data.split.test else "every scene, training part included"
    flat = {**trained.scores, "scored_on": scored_on, "training": training_facts(trained), "baseline": baselines}
    with atomic_write(out / "metrics.json") as temporary:
        Path(temporary).write_text(json.dumps(flat, indent=2) + "\n")
    return Outcome(folder, flat)


def evaluate(
    model: str | Path, config: RunConfig, out: str | Path, *, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Score a bundle on the config's held-out places; where it names none, on all of every scene.

    Leaves `out/metrics.json` and returns what it holds.
    """
    out = Path(out)
    bundle = load_bundle(model)
    config = config.model_copy(update={"adapter": bundle.adapter.to_dict()})
    if bundle.adapter.volume is not None:
        from pipelines.volumes.experiments import evaluate_volumes

        return evaluate_volumes(bundle, config, out, Watch(on_progress, None))
    with LabelledData(config) as data:
        places = data.split.test or everything(data)
        tiles = Watch(on_progress, None).tiles("score")
        options = config.predict.model_copy(
            update={"task": config.predict.task or bundle.provenance.get("task") or default_task(bundle.adapter)}
        )
        scores = score(bundle.build(), data, places, options, bundle.thresholds, tiles)
        scores["baseline"] = {"trivial": _trivial(data)}
        beside = Path(bundle.folder).parent / "baseline"
        if (beside / "bundle.json").exists():
            other = load_bundle(beside)
            options = config.predict.model_copy(update={"task": "semantic"})
            scores["baseline"]["unet"] = score(other.build(), data, places, options, other.thresholds, tiles)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "metrics.json") as temporary:
        Path(temporary).write_text(json.dumps(scores, indent=2) + "\n")
    return scores


def score(
    network: nn.Module,
    data: LabelledData,
    places: list[Place],
    options: PredictOptions,
    thresholds: dict[str, float],
    on_tile: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Predict each place as a whole, stitch, and compare with its labels."""
    predictor = Predictor(network, data.adapter, settle(options, data.adapter, thresholds))
    parts = []
    for place in places:
        source, truth = data.view(place)
        scene, ids = predict_in_memory(source, predictor, thresholds, on_tile=on_tile)
        boxes = data.scenes[place.item].box_labels
        counts = data.adapter.points is not None
        parts.append(
            evaluate_scene(scene.objects, ids, truth, data.adapter.classes, boxes, data.adapter.covers, counts)
        )
    return combine(parts)


def _train_one(
    config: RunConfig,
    wanted: ModelOptions,
    options: TrainOptions,
    data: LabelledData,
    checkpoints: Path,
    resume: bool,
    watch: Watch,
) -> Trained:
    split = data.split
    model_config, model = build(wanted, data.adapter, options.seed)
    parts = [Part(data.scenes[p.item].path, data.scenes[p.item].annotations, p.window) for p in split.train]
    criterion, on_row = build_criterion(model_config), watch.of(wanted.preset, options)
    with closing(CropDataset(parts, data.adapter, options.crop, options.augment, options.seed)) as dataset:
        # The earlier run may have ended before this network's turn came.
        begun = resume and (checkpoints / CHECKPOINT).exists()
        fitted = fit(model, criterion, dataset, options, checkpoints, on_row, resume=begun)
    with closing(CropDataset(parts, data.adapter, options.crop, (), options.seed, Sampling(objects=0))) as plain:
        reference = remember(model, plain, data.adapter)
    # Objects of a per-pixel network are the regions of its class map.
    task = "semantic" if model_config.architecture == "unet" else config.predict.task
    settings = config.predict.model_copy(update={"task": task or default_task(data.adapter)})

    def make_predictor(lowest: float) -> Predictor:
        open_options = settings.model_copy(update={"score": lowest})
        return Predictor(model, data.adapter, settle(open_options, data.adapter, {}))

    boxes = any(scene.box_labels for scene in data.scenes)
    thresholds = tune(
        [data.view(p) for p in split.validation],
        data.adapter,
        make_predictor,
        boxes,
        watch.tiles(f"tune {wanted.preset}"),
    )
    scores = score(
        model, data, split.test or everything(data), settings, thresholds, watch.tiles(f"score {wanted.preset}")
    )
    return Trained(model, model_config, options, settings, fitted, thresholds, scores, reference)


def baseline_settings(config: RunConfig) -> tuple[ModelOptions, TrainOptions]:
    """The baseline's model and options: all as for the model but for the network, its learning rates and steps."""
    baseline = config.baseline
    assert baseline is not None
    update = {"learning_rate": baseline.learning_rate, "backbone_multiplier": baseline.backbone_multiplier}
    if baseline.steps is not None and config.train.steps is not None:
        update["steps"] = baseline.steps
    model = ModelOptions(preset=baseline.preset, overrides=baseline.overrides, weights=config.model.weights)
    return model, config.train.model_copy(update=update)


def _trivial(data: LabelledData) -> dict[str, Any]:
    """The best that can be done without a network: constant answers and, where ground is bare, one tuned threshold."""
    split = data.split
    tuned_on = [data.view(place) for place in split.train]
    scored_on = [data.view(place) for place in split.test or everything(data)]
    adapter = data.adapter
    answers = {} if adapter.covers else trivial_baselines(tuned_on, scored_on)
    if len(adapter.classes) > 1:
        answers["most_common_class"] = most_common_class(tuned_on, scored_on, adapter.classes, adapter.covers)
    return answers


def everything(data: LabelledData) -> list[Place]:
    return [
        Place(index, (slice(0, scene.source.shape[0]), slice(0, scene.source.shape[1])))
        for index, scene in enumerate(data.scenes)
    ]


def changed(config: RunConfig, minutes: float | None, seed: int | None) -> RunConfig:
    """The config with another length or seed, as given on the command line."""
    update: dict[str, Any] = {}
    if minutes is not None:
        update |= {"minutes": minutes, "steps": None}
    if seed is not None:
        update |= {"seed": seed}
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def training_facts(trained: Trained) -> dict[str, Any]:
    options = trained.options
    return {
        "preset_parameters": sum(p.numel() for p in trained.model.parameters()),
        "steps": trained.fitted.steps,
        "seconds": round(trained.fitted.seconds, 1),
        "learning_rate": options.learning_rate,
        "backbone_multiplier": options.backbone_multiplier,
        "batch": options.batch,
        "crop": options.crop,
        "seed": options.seed,
    }


def _save(
    folder: Path,
    trained: Trained,
    data: LabelledData,
    metrics: dict[str, Any],
    beside: Trained | None = None,
) -> Path:
    provenance = {
        "name": data.config.name,
        "task": trained.predict.task,
        "training": training_facts(trained),
        "history": trained.fitted.history,
        "reference": trained.reference,
        "baseline_history": beside.fitted.history if beside else [],
        "places": _places(data),
        "labels": [scene.annotations.report for scene in data.scenes],
        **transferred(trained.model),
    }
    return save_bundle(
        folder,
        trained.model,
        data.adapter,
        metrics=metrics,
        provenance=provenance,
        thresholds=trained.thresholds,
    )


def transferred(model: nn.Module) -> dict[str, Any]:
    """The account of a model that was carried over, for its provenance; nothing for another."""
    account = getattr(model, "transferred", None)
    return {} if account is None else {"transfer": account.to_dict()}


def _places(data: LabelledData) -> list[dict[str, Any]]:
    """Which part of which scene (by its bytes) was trained on, tuned on, held out: [start, stop] per axis."""
    split = data.split
    return [
        {
            "role": role,
            "scene": scene.path.name,
            "sha256": scene.source.digest(),
            "window": [[s.start, s.stop] for s in place.window],
        }
        for role in ("train", "validation", "test")
        for place in getattr(split, role)
        for scene in [data.scenes[place.item]]
    ]
