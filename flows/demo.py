"""The demo: the whole road on real scenes, in one command, with embedded defaults only.

fetch → train mask model and U-Net → score on the held-out place → register → predict through Prefect → check itself
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from adapters.errors import InputError
from pipelines.annotations.options import LabelOptions
from pipelines.config import DataItem, RunConfig, load_config
from pipelines.manifest import Stopwatch

if TYPE_CHECKING:
    from pipelines.tracked import TrackedOutcome

OUTPUT = Path("demo-output")
DEMOS = Path(__file__).parent / "demos"
# Scenes predicted beside the one that was trained on: another site, another CRS, no labels used.
ELSEWHERE = {"crowns": ("sample:crowns/OSBS_029.tif",), "buildings": ()}
Progress = Callable[..., None]


class DemoFailed(RuntimeError):
    """The demo checked itself and found a promise broken."""


@dataclass(frozen=True)
class SceneRun:
    """One scene's folder and the flow run that made it."""

    folder: Path
    flow_run: UUID
    state: str
    shards: list[str]


def run_demo(name: str, on_progress: Progress, say: Callable[[str], None]) -> None:
    """Run demo `name` into ./demo-output. Raises DemoFailed where its own checks fail."""
    watch = Stopwatch()
    config = load_demo_config(name)
    with ExitStack() as stack:
        with watch.stage("start servers"):
            stack.enter_context(_embedded_servers())
        training = OUTPUT / "training" / name
        for left in (training, OUTPUT / ".shards", OUTPUT / "check"):  # a demo starts anew; only its own folders go
            shutil.rmtree(left, ignore_errors=True)
        with watch.stage("train, tune, score and register both networks"):
            outcome = _train(config, training, on_progress)
        assert outcome.registered is not None, "the demo's config registers its model"
        item = config.data[0]
        with watch.stage("predict scenes through Prefect"):
            scenes = [_segment(item, outcome.registered)]
            scenes += [_segment(DataItem(source=source), outcome.registered) for source in ELSEWHERE[name]]
        with watch.stage("check itself, one shard again"):
            _check(scenes, item, outcome.registered)
    (OUTPUT / "demo.json").write_text(json.dumps({"demo": name, "stages_s": watch.seconds}, indent=2) + "\n")
    say("")
    for line in _summary(config, outcome.metrics, scenes, sum(watch.seconds.values())):
        say(line)


def _train(config: RunConfig, training: Path, on_progress: Progress) -> TrackedOutcome:
    from pipelines.tracked import train_tracked

    return train_tracked(config, training, on_progress=on_progress)


@contextmanager
def _embedded_servers() -> Iterator[None]:
    """MLflow on SQLite and Prefect's temporary server, both inside ./demo-output."""
    from flows.runtime import serverless

    OUTPUT.mkdir(exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{OUTPUT.resolve() / 'mlflow.db'}"
    with serverless(OUTPUT / "prefect"):
        yield


def _segment(item: DataItem, model: str, out: Path = OUTPUT) -> SceneRun:
    from flows.segment_scene import segment_scene, shard_states
    from pipelines.labelled import resolve

    state = segment_scene(
        source=str(resolve(item.source)),
        model=model,
        out=str(out),
        labels=str(resolve(item.labels)) if item.labels else None,
        label_options=item.label_options if item.labels else LabelOptions(),
        overwrite=True,
        keep_shards=True,
        return_state=True,
    )
    flow_run = state.state_details.flow_run_id
    assert flow_run is not None, "a flow run that returned has an id"
    folder = Path(state.result())
    return SceneRun(folder, flow_run, state.type.value, shard_states(flow_run, folder))


def _check(scenes: list[SceneRun], item: DataItem, model: str) -> None:
    """What the demo promises: completed runs, shards as tasks, a registered version, and cheap repetition."""
    from pipelines.sinks.folder import sha256
    from pipelines.tracking import list_models

    for scene in scenes:
        if scene.state != "COMPLETED" or set(scene.shards) != {"Computed"}:
            raise DemoFailed(f"{scene.folder}: flow run {scene.state}, shards {scene.shards}")
    if not any(f"models:/{row['name']}/{row['version']}" == model for row in list_models()):
        raise DemoFailed(f"{model}: not in the registry")
    first = scenes[0]
    scratch = OUTPUT / "check"  # the first run's files stay as they are
    scratch.mkdir()
    (OUTPUT / ".shards").rename(scratch / ".shards")
    shards = sorted((scratch / ".shards").glob(f"{first.folder.name}-*/shard-*.npz"))
    shards[0].unlink()
    again = _segment(item, model, scratch)
    if again.shards.count("Computed") != 1 or again.shards[0] != "Computed":
        raise DemoFailed(f"{first.folder}: one shard was deleted, recomputed were {again.shards}")
    for name in ("semantic.tif", "objects.parquet"):
        if sha256(first.folder / name) != sha256(again.folder / name):
            raise DemoFailed(f"{first.folder}: the repeated run gave another {name}")
    shutil.rmtree(scratch)


def _summary(config: RunConfig, metrics: dict[str, Any], scenes: list[SceneRun], seconds: float) -> Iterator[str]:
    yield from _table(config, metrics)
    yield ""
    for scene in scenes:
        yield f"{scene.folder}/  report.html  objects.gpkg  objects.parquet  semantic.tif  run.json"
    yield ""
    quiet = "DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true PREFECT_SERVER_ANALYTICS_ENABLED=false"
    yield f"Runs and models:  {quiet} .venv/bin/mlflow server --backend-store-uri sqlite:///demo-output/mlflow.db"
    yield f"Flow runs:        {quiet} PREFECT_HOME=demo-output/prefect .venv/bin/prefect server start"
    yield f"Done in {seconds / 60:.1f} minutes."


def _table(config: RunConfig, metrics: dict[str, Any]) -> Iterator[str]:
    """Held-out scores, side by side; `-` where a row has no such number."""
    columns = [key for key in ("foreground_iou", "f1_50", "box_f1_50", "pq", "ap50") if key in metrics]
    rows = [("mask model", metrics)]
    if "unet" in metrics["baseline"]:
        rows.append(("per-pixel U-Net + regions", metrics["baseline"]["unet"]))
    rows += [(f"trivial: {key.replace('_', ' ')}", row) for key, row in metrics["baseline"]["trivial"].items()]
    yield f"Held-out part of {config.data[0].source.rpartition('/')[2]}, scored after stitching:"
    yield f"{'':32}" + "".join(f"{column:>16}" for column in columns) + f"{'steps':>8}"
    for label, row in rows:
        cells = [f"{row[c]:16.3f}" if isinstance(row.get(c), float) else f"{'-':>16}" for c in columns]
        yield f"{label:32}" + "".join(cells) + f"{row.get('training', {}).get('steps', '-'):>8}"


def load_demo_config(name: str) -> RunConfig:
    """The demo's run config. Raises InputError for an unknown name."""
    path = DEMOS / f"{name}.yaml"
    if not path.exists():
        raise InputError(f"{name}: no such demo; there are {', '.join(sorted(p.stem for p in DEMOS.glob('*.yaml')))}")
    return load_config(path)
