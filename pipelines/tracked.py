"""Training, evaluation, prediction, counting as tracked runs: what went in, what came out, on which data and code.

`MASKBRIDGE_TRACKING=off` leaves all but trainings untracked (tests, a scratch run); training is always tracked, for its
model comes from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import PredictOptions, RunConfig, save_config
from pipelines.json_logs import redacted
from pipelines.labelled import load_adapter
from pipelines.model_card import CARD
from pipelines.tracking import EXPERIMENT, Run, track

if TYPE_CHECKING:
    from pipelines.picture_runs import PictureRun

log = logging.getLogger(__name__)

SWITCH = "MASKBRIDGE_TRACKING"
KEY_FILE = "tracking.json"  # in a training's folder: whose run a resumed training continues
KIND_TAG = "maskbridge.kind"  # train, evaluate, predict, count, adapt, drift
MODEL_TAGS = "model."
TRANSFERRED = ("kept", "mapped", "fresh", "unused")  # tensors, see `pipelines.transfer`
COUNTS = ("objects", "pictures", "ambiguous_links", "lost_pixels", "peak_rss_bytes", "shards")


@dataclass(frozen=True)
class TrackedOutcome:
    """`run_id` is None while the store is away. `registered` is `models:/name/version`; None where the config names no
    registry entry, or the store is away."""

    bundle: Path
    metrics: dict[str, Any]
    run_id: str | None
    registered: str | None


def is_on() -> bool:
    """Whether evaluations and predictions are tracked."""
    return os.environ.get(SWITCH, "on").lower() not in ("off", "0", "false", "no")


def train_tracked(
    config: RunConfig,
    out: str | Path,
    *,
    minutes: float | None = None,
    seed: int | None = None,
    resume: bool = False,
    on_progress: Callable[..., None] | None = None,
) -> TrackedOutcome:
    """`pipelines.experiments.train` inside an MLflow run, which records the config as it was run.

    A resumed training goes on in the run it began in, whoever started that and whether or not the store was there.
    """
    from pipelines.experiments import changed, train
    from pipelines.registry import check_names

    config = changed(config, minutes, seed)
    if config.tracking.register_as:
        check_names(config.tracking.register_as, config.tracking.alias)  # now, not after hours of training
    adapter = load_adapter(config)
    tracking, key = config.tracking, _key(Path(out), resume)
    with track(config.name, experiment=tracking.experiment, uri=tracking.uri, key=key, system_metrics=True) as run:
        run.tag(KIND_TAG, "train")
        run.params(config.model_dump(mode="json", exclude={"adapter", "data"}))
        _keep_adapter(run, adapter)
        keep_config(run, config)

        def on_row(preset: str, row: dict[str, float]) -> None:
            run.metrics({f"{preset}/{key}": value for key, value in row.items() if key != "step"}, int(row["step"]))

        outcome = train(config, out, resume=resume, on_progress=on_progress, on_row=on_row)
        run.metrics(final_scores(outcome.metrics))
        save_config(without_password(config), Path(out) / "config.yaml")
        bundle = load_bundle(outcome.bundle, check_shapes=False)
        _keep_data(run, bundle)
        _keep_transfer(run, bundle)
        run.artifact(Path(out) / "metrics.json")
        run.artifact(outcome.bundle / CARD)
        registered = _registered(run, bundle, config, outcome.metrics)
        run.flush()
        return TrackedOutcome(outcome.bundle, outcome.metrics, run.run_id, registered)


def evaluate_tracked(
    model: str | Path,
    config: RunConfig,
    out: str | Path,
    *,
    on_progress: Callable[..., None] | None = None,
    on_run: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """`pipelines.experiments.evaluate` inside an MLflow run; `on_run` is told its id, where the store is there."""
    from pipelines.experiments import evaluate

    if not is_on():
        return evaluate(model, config, out, on_progress=on_progress)
    bundle = load_bundle(model, check_shapes=False)
    tracking = config.tracking
    with track(f"evaluate {config.name}", experiment=tracking.experiment, uri=tracking.uri, system_metrics=True) as run:
        run.tag(KIND_TAG, "evaluate")
        keep_model(run, bundle)
        run.params(config.model_dump(mode="json", exclude={"adapter", "data", "model", "train", "baseline"}))
        keep_config(run, config.model_copy(update={"adapter": bundle.adapter.to_dict()}))
        scores = evaluate(model, config, out, on_progress=on_progress)
        run.metrics({"score": scores})
        run.data(scored_digests(config, bundle.adapter, scores), "test")
        run.artifact(Path(out) / "metrics.json")
        if on_run and run.flush() and run.run_id:
            on_run(run.run_id)
    return scores


def count_tracked(
    model: str | Path, place: str | Path, out: str | Path, options: PredictOptions, **how: Any
) -> PictureRun:
    """`pipelines.count_pictures.count_pictures` with an MLflow run: totals, counts.csv, one digest of all pictures.

    The report stays where its pictures are. A sweep that finds nothing new is no run. `how` goes through.
    """
    from pipelines.count_pictures import count_pictures

    if not is_on():
        return count_pictures(model, place, out, options, **how)
    bundle = load_bundle(model, check_shapes=False)
    began = time.monotonic()
    result = count_pictures(model, place, out, options, **how)
    if not result.fresh:
        return result
    with track(f"count {Path(place).name}", experiment=EXPERIMENT) as run:
        run.tag(KIND_TAG, "count")
        keep_model(run, bundle)
        run.params({"parameters": options.model_dump(mode="json")})
        totals = {name: sum(record[name] for record in result.records) for name in ("count", "expected")}
        facts = {"pictures": len(result.records), "fresh": result.fresh, "failed": len(result.failed)}
        run.metrics({**totals, **facts, "seconds": time.monotonic() - began})
        digests = "".join(sorted(str(record["sha256"]) for record in result.records))
        run.data({Path(place).name: hashlib.sha256(digests.encode()).hexdigest()}, "count")
        for name in ("run.json", "counts.csv"):
            run.artifact(Path(out) / name)
    return result


class Prediction:
    """What a prediction tells its run; made by `predict_tracked`. Without a run it tells nobody."""

    def __init__(self, run: Run | None, discreet: bool) -> None:
        self._run = run
        self._discreet = discreet
        self._written = 0

    @property
    def run_id(self) -> str | None:
        """Of MLflow; None where nothing is tracked, and while the store is away."""
        return self._run.run_id if self._run else None

    def wrote(self, folder: str | Path) -> None:
        """A finished folder: numbers and digests of its run.json, and its report."""
        folder = Path(folder)
        if self._run is None:
            return
        try:
            manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            log.warning("%s: not told to MLflow: %s", folder / "run.json", error)
            return
        self._run.params({"parameters": manifest.get("parameters", {})} if not self._written else {})
        numbers = {name: manifest[name] for name in COUNTS if isinstance(manifest.get(name), int | float)}
        self._run.metrics(numbers | {"seconds": manifest.get("timings_s", {})}, self._written)
        source = manifest.get("source")
        if isinstance(source, Mapping) and isinstance(source.get("sha256"), str):
            name = source["sha256"][:12] if self._discreet else str(source.get("name", folder.name))
            self._run.data({name: source["sha256"]}, "predict")
        if not self._discreet:
            for name in ("run.json", "report.html"):
                if (folder / name).is_file():
                    self._run.artifact(folder / name, folder.name)
        self._written += 1


@contextmanager
def predict_tracked(model: str | Path, name: str, *, key: str | None = None) -> Iterator[Prediction]:
    """A run for what the block predicts with `model`; tell it of every folder. With a `key`, a resumed run's own.

    Of CT and MRI studies only numbers and digests are told: reports show the patient, and folders may have his name.
    """
    if not is_on():
        yield Prediction(None, False)
        return
    bundle = load_bundle(model, check_shapes=False)
    with track(f"predict {name}", experiment=EXPERIMENT, key=key, system_metrics=True) as run:
        run.tag(KIND_TAG, "predict")
        keep_model(run, bundle)
        yield Prediction(run, bundle.adapter.volume is not None)


def discreet(config: RunConfig) -> RunConfig:
    """The config as it may travel: without a password, and of volumes without the paths of their data, whose names may
    be patients'."""
    config = without_password(config)
    if load_adapter(config).volume is None:
        return config
    hidden = {"source": "(not recorded)", "patient": None}
    data = tuple(item.model_copy(update={**hidden, "labels": item.labels and "(not recorded)"}) for item in config.data)
    return config.model_copy(update={"data": data})


def without_password(config: RunConfig) -> RunConfig:
    """The config with the tracking address as it may be seen; a password is the environment's business."""
    if config.tracking.uri is None:
        return config
    clean = config.tracking.model_copy(update={"uri": redacted(config.tracking.uri).replace("***@", "")})
    return config.model_copy(update={"tracking": clean})


def final_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Held-out scores of the model and, under `baseline.`, of the U-Net."""
    baseline = metrics["baseline"].get("unet", {})
    mine = {f"heldout.{k}": v for k, v in metrics.items() if isinstance(v, int | float)}
    return mine | {f"baseline.unet.{k}": v for k, v in baseline.items() if isinstance(v, int | float)}


def scored_digests(config: RunConfig, adapter: DomainAdapter, scores: Mapping[str, Any]) -> dict[str, str]:
    """{scene: sha256} of what was scored; of volumes the twelve digits that scores name a case by."""
    if adapter.volume is not None:
        return {str(row["case"]): str(row["case"]) for row in scores.get("per_case", ())}
    from pipelines.labelled import resolve
    from pipelines.sources import open_for

    found: dict[str, str] = {}
    for item in config.data:
        path = resolve(item.source)
        with open_for(path, adapter) as source:
            found[path.name] = source.digest()
    return found


def _key(out: Path, resume: bool) -> str:
    """The run's key, kept in the training's folder for the day it is resumed."""
    file = out / KEY_FILE
    if resume:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(file.read_text(encoding="utf-8"))["key"])
    key = uuid.uuid4().hex
    with suppress(OSError):  # training says in its own words that the folder cannot be written
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
    return key


def keep_config(run: Run, config: RunConfig) -> None:
    """As config.yaml, made discreet."""
    with tempfile.TemporaryDirectory() as folder:
        save_config(discreet(config), Path(folder) / "config.yaml")
        run.artifact(Path(folder) / "config.yaml")


def _keep_adapter(run: Run, adapter: DomainAdapter) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapter.json"
        file.write_text(adapter.to_json(), encoding="utf-8")
        run.artifact(file)
    run.tag("adapter", adapter.name)


def keep_model(run: Run, bundle: Bundle) -> None:
    """Which model a run used: its name, version and hashes, and its adapter."""
    facts = {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256, "bundle_sha256": bundle.digest}
    run.params({MODEL_TAGS + name: value for name, value in facts.items() if value is not None})
    run.tag(MODEL_TAGS + "sha256", bundle.sha256)
    _keep_adapter(run, bundle.adapter)


def _keep_data(run: Run, bundle: Bundle) -> None:
    """Digests of the scenes or cases a model learned from, by their part; cases are named by their digest."""
    rows = [*(bundle.provenance.get("places") or ()), *(bundle.provenance.get("cases") or ())]
    parts: dict[str, dict[str, str]] = {}
    for row in rows:
        digest = str(row.get("sha256", ""))
        parts.setdefault(str(row.get("role")), {})[str(row.get("scene") or digest[:12])] = digest
    for role, digests in parts.items():
        run.data(digests, role)


def _keep_transfer(run: Run, bundle: Bundle) -> None:
    """Of a model that was carried over: the whole account as transfer.json, and what it came from as a tag."""
    account = bundle.provenance.get("transfer")
    if not account:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "transfer.json"
        file.write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
        run.artifact(file)
    run.tag("transfer.from", account["from"])
    counts = {kind: account[kind] if kind == "kept" else len(account[kind]) for kind in TRANSFERRED}
    run.metrics({"transfer": counts})


def _registered(run: Run, bundle: Bundle, config: RunConfig, metrics: Mapping[str, Any]) -> str | None:
    """`models:/name/version` where the config names a registry entry and the store took it."""
    from pipelines.registry import submit

    name, alias = config.tracking.register_as, config.tracking.alias
    if not name:
        return None
    scores = {key: value for key, value in metrics.items() if isinstance(value, float)}
    try:
        version = submit(bundle, name, run, alias, scores)
    except InputError as error:
        log.warning("%s is not registered as %s: %s", bundle.folder, name, error)
        return None
    return f"models:/{name}/{version}" if version else None
