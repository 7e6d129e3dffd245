"""Train and evaluate on volumes by a run config: cases → split by patient → fit → tune → whole volumes scored.

With `split.folds` every patient is held out once: a training a fold, in `out/fold-0/`, `out/fold-1/`, ..., and
`out/metrics.json` has the scores of all patients. `out/bundle/` is then the first fold's model; `maskbridge predict`
averages it with the others (`--fold`).
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from maskformer.losses import build_criterion
from pipelines.adaptation.reference import remember
from pipelines.bundle import Bundle, load_bundle, save_bundle
from pipelines.checkpoints import NAME as CHECKPOINT
from pipelines.config import ModelOptions, PredictOptions, RunConfig, TrainOptions
from pipelines.experiments import Outcome, Trained, Watch, baseline_settings, training_facts
from pipelines.labelled import load_adapter
from pipelines.predictor import default_task, settle
from pipelines.sinks.folder import atomic_write
from pipelines.starting import build
from pipelines.training import fit
from pipelines.volumes.cases import ROLES, CaseSplit, LabelledCase, check_folds, describe, gather_cases, split_cases
from pipelines.volumes.dataset import SliceDataset, SliceSampling
from pipelines.volumes.evaluation import CaseScores, hashed, score_case, summary
from pipelines.volumes.options import VolumeOptions, slices_at_once
from pipelines.volumes.patients import LearnedFrom, case_rows
from pipelines.volumes.prediction import VolumeModel, VolumePredictor
from pipelines.volumes.prepared import CaseStore, labels_of, open_case
from pipelines.volumes.tuning import tune_volumes

log = logging.getLogger(__name__)
FOLD_KEYS = ("dice", "iou", "hd95", "nsd", "processor_seconds", "training")


@dataclass(frozen=True)
class _Run:
    """What all trainings of a config share."""

    config: RunConfig
    cases: Sequence[LabelledCase]
    store: CaseStore
    resume: bool
    watch: Watch

    def fold(self, number: int | None, out: Path) -> _Fold:
        split = split_cases(self.cases, self.config.split, number)
        log.info("%s%s", "" if number is None else f"fold {number}: ", describe(split))
        return _Fold(self, split, out, number)


@dataclass(frozen=True)
class _Fold:
    """One training: its cases and its folder."""

    run: _Run
    split: CaseSplit
    out: Path
    number: int | None

    @property
    def scored(self) -> tuple[LabelledCase, ...]:
        """The held-out cases; without any, all of them."""
        return self.split.test or (*self.split.train, *self.split.validation)


def train_volumes(config: RunConfig, out: Path, resume: bool, watch: Watch) -> Outcome:
    """Train the config's model and its baseline, on one split or on every fold; see the module."""
    cases = gather_cases(config)
    check_folds(cases, config.split)
    begun = any(out.glob(f"**/{CHECKPOINT}"))
    if resume and not begun:
        raise InputError(f"{out}: nothing to resume; no checkpoint of an earlier run is there")
    if begun and not resume:  # now, not after all cases are read
        raise InputError(f"{out}: a run is here already; resume it (--resume), or choose another folder")
    folds, fold = config.split.folds, config.split.fold
    with CaseStore(load_adapter(config), config.train.cache_mb) as store:
        run = _Run(config, cases, store, resume, watch)
        if folds is None or fold is not None:
            return _train_fold(run.fold(fold, out))
        outcomes = []
        for number in range(folds):
            one = run.fold(number, out / f"fold-{number}")
            done = _finished(one.out) if resume else None
            outcomes.append(done or _train_fold(one))
    return _pool(config, out, outcomes)


def evaluate_volumes(bundle: Bundle, config: RunConfig, out: Path, watch: Watch) -> dict[str, Any]:
    """Score a bundle on the config's held-out cases; where its split names none, on every case.

    Of a config with folds it is the fold the bundle was trained for, if the bundle says so. Leaves `out/metrics.json`.
    """
    cases = gather_cases(config)
    fold = config.split.fold if config.split.fold is not None else bundle.provenance.get("fold")
    asked = config.split.folds is None or fold is not None
    held = split_cases(cases, config.split, fold).test if asked else ()
    scored = held or tuple(cases)
    scores = _score(_loaded(bundle), scored, config, _task_of(bundle, config), watch, "score")
    learned = LearnedFrom(bundle.provenance)
    known = sum(
        learned.knows(row["case"], one.case.patient) for row, one in zip(scores["per_case"], scored, strict=True)
    )
    scores["scored_on"] = "held-out patients" if held else "every case"
    scores["trained_on"] = known
    if known:
        told = "%d of %d scored cases, or others of the same patients, were learned from: their scores say little"
        log.warning(told, known, len(scored))
    beside = Path(bundle.folder).parent / "baseline"
    scores["baseline"] = {}
    if (beside / "bundle.json").exists():
        other = load_bundle(beside)
        scores["baseline"]["unet"] = _score(_loaded(other), scored, config, "semantic", watch, "score baseline")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "metrics.json", scores)
    return scores


def _train_fold(fold: _Fold) -> Outcome:
    """Both networks of one split; leaves `bundle/`, `baseline/` and `metrics.json` in the fold's folder."""
    config, out = fold.run.config, fold.out
    out.mkdir(parents=True, exist_ok=True)
    trained = _train_one(fold, config.model, config.train, "checkpoints")
    baselines: dict[str, Any] = {}
    beside = None
    if config.baseline:
        beside = _train_one(fold, *baseline_settings(config), "baseline-checkpoints")
        baselines["unet"] = {**beside.scores, "training": training_facts(beside)}
        _save(out / "baseline", beside, fold, {"heldout": beside.scores})
    metrics = {"heldout": trained.scores, "baseline": baselines}
    folder = _save(out / "bundle", trained, fold, metrics, beside)
    scored_on = "held-out patients" if fold.split.test else "every case, training part included"
    flat = {**trained.scores, "scored_on": scored_on, "training": training_facts(trained), "baseline": baselines}
    _write(out / "metrics.json", flat)
    return Outcome(folder, flat)


def _train_one(fold: _Fold, wanted: ModelOptions, options: TrainOptions, where: str) -> Trained:
    config, store, watch = fold.run.config, fold.run.store, fold.run.watch
    adapter = store.adapter
    model_config, model = build(wanted, adapter, options.seed)
    criterion = build_criterion(model_config)
    cases = store.prepare(fold.split.train, _counted(watch, "read cases"))
    dataset = SliceDataset(cases, adapter, options.crop, options.augment, options.seed)
    checkpoints = fold.out / where
    begun = fold.run.resume and (checkpoints / CHECKPOINT).exists()
    on_row = watch.of(_stage(wanted.preset, fold.number), options)
    began = time.process_time()  # where others use the machine too, this says more than the clock on the wall
    fitted = fit(model, criterion, dataset, options, checkpoints, on_row, resume=begun)
    processor_seconds = round(time.process_time() - began, 1)
    plain = SliceDataset(cases, adapter, options.crop, (), options.seed, SliceSampling(content=0))
    reference = remember(model, plain, adapter)
    # Objects of a per-pixel network are the regions of its class map.
    task = "semantic" if model_config.architecture == "unet" else config.predict.task or default_task(adapter)
    settings = config.predict.model_copy(update={"task": task})
    settled = settle(settings, adapter, {})
    tuned = store.prepare(fold.split.validation)
    thresholds = tune_volumes(model, tuned, adapter, settled, _counted(watch, f"tune {wanted.preset}"))
    predictable = VolumeModel(model, adapter, thresholds)
    scores = _score(predictable, fold.scored, config, task, watch, f"score {wanted.preset}")
    scores["processor_seconds"] = processor_seconds
    return Trained(model, model_config, options, settings, fitted, thresholds, scores, reference)


def _score(
    model: VolumeModel, cases: Sequence[LabelledCase], config: RunConfig, task: str, watch: Watch, stage: str
) -> dict[str, Any]:
    """Predict whole volumes and compare them with their labels."""
    predictor = VolumePredictor(model, volume_options(config.predict, task))
    rows, tell = [], _counted(watch, stage)
    for number, one in enumerate(cases, start=1):
        with open_case(one, model.adapter) as source:
            truth = labels_of(one, source, model.adapter)
            result = predictor(source)
            tolerance = config.scoring.tolerance_mm
            table = score_case(result, truth, model.adapter, source.geometry.spacing, tolerance)
            rows.append(CaseScores(source.digest()[:12], hashed(one.case.patient), table))
        tell(number, len(cases))
    return summary(rows, config.scoring)


def volume_options(predict: PredictOptions, task: str | None = None) -> VolumeOptions:
    """What a run config says of prediction, for volumes."""
    names = {"score", "mask", "tta", "device", "precision"}
    shared = {name: getattr(predict, name) for name in names}
    return VolumeOptions(**{**shared, "task": task or predict.task, "batch": slices_at_once(predict)})


def _pool(config: RunConfig, out: Path, folds: Sequence[Outcome]) -> Outcome:
    """The scores of all folds' held-out patients together; `bundle/` and `baseline/` of the first fold."""

    def pooled(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        cases = [CaseScores.from_dict(row) for part in parts for row in part["per_case"]]
        facts = [{key: part[key] for key in FOLD_KEYS} for part in parts]
        return {**summary(cases, config.scoring), "folds": facts}

    scores = [fold.metrics for fold in folds]
    baselines = [part["baseline"]["unet"] for part in scores if "unet" in part["baseline"]]
    flat = {
        **pooled(scores),
        "scored_on": f"held-out patients of {len(folds)} folds",
        "training": scores[0]["training"],
        "baseline": {"unet": {**pooled(baselines), "training": baselines[0]["training"]}} if baselines else {},
    }
    for name in ("bundle", "baseline"):
        if (folds[0].bundle.parent / name).is_dir():
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(folds[0].bundle.parent / name, out / name)
    _write(out / "metrics.json", flat)
    return Outcome(out / "bundle", flat)


def _finished(folder: Path) -> Outcome | None:
    """What an earlier run left of a fold, where it came to its end."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Outcome(folder / "bundle", metrics)


def _save(
    folder: Path,
    trained: Trained,
    fold: _Fold,
    metrics: dict[str, Any],
    beside: Trained | None = None,
) -> Path:
    roles = [(role, one) for role in ROLES for one in getattr(fold.split, role)]
    provenance = {
        "name": fold.run.config.name,
        "task": trained.predict.task,
        "fold": fold.number,
        "training": training_facts(trained),
        "history": trained.fitted.history,
        "reference": trained.reference,
        "baseline_history": beside.fitted.history if beside else [],
        **case_rows([(role, fold.run.store.digest(one), one.case.patient) for role, one in roles]),
    }
    return save_bundle(
        folder,
        trained.model,
        fold.run.store.adapter,
        metrics=metrics,
        provenance=provenance,
        thresholds=trained.thresholds,
    )


def _loaded(bundle: Bundle) -> VolumeModel:
    return VolumeModel(bundle.build(), bundle.adapter, bundle.thresholds)


def _task_of(bundle: Bundle, config: RunConfig) -> str:
    return config.predict.task or bundle.provenance.get("task") or default_task(bundle.adapter)


def _stage(preset: str, fold: int | None) -> str:
    return preset if fold is None else f"{preset} fold {fold}"


def _counted(watch: Watch, stage: str) -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        if watch.on_progress:
            watch.on_progress(stage, done, total)

    return told


def _write(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
