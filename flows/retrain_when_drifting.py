"""Look whether what comes in is still what the model was trained on, and say so; nothing more.

The event `maskbridge.drifted` about `maskbridge.model.<name>` carries the numbers, and the run config of a new training
where one was given. Whether that training is worth its hours is decided by a person, or by the trigger of `train` in
prefect.yaml, which is off until somebody switches it on.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.states import Completed, State

from flows.artifacts import show_table
from flows.runs import begin, is_bad_luck, pinned
from pipelines.config import RunConfig
from pipelines.drift.bands import DriftLimits
from pipelines.new_scenes import SceneSearch

DRIFTED = "maskbridge.drifted"
CROPS = 16  # looked at with the network, over all scenes


@task(name="compare", retries=2, retry_delay_seconds=[10, 60], retry_condition_fn=is_bad_luck, cache_policy=NO_CACHE)
def compare_task(model: str, scenes: list[str], limits: DriftLimits) -> dict[str, Any]:
    from pipelines.bundle import load_bundle
    from pipelines.drift.bands import bands_of, drifted
    from pipelines.drift.features import drift_of
    from pipelines.tracked_domains import tell_drift

    bundle = load_bundle(model)
    rows = bands_of(scenes, bundle.adapter)
    found = drift_of(bundle, scenes, CROPS)
    tell_drift(bundle, scenes, found)
    told = {"scenes": len(scenes), "drifted": drifted(rows, limits), "number": round(found.number, 4)}
    return {**told, "bands": [row.to_dict() for row in rows]}


@flow(name="retrain-when-drifting", flow_run_name="drift-of-{model}")
def retrain_when_drifting(
    model: str,
    scenes: str,
    search: SceneSearch = SceneSearch(most=20),  # noqa: B008  (frozen)
    limits: DriftLimits = DriftLimits(),  # noqa: B008
    config: RunConfig | None = None,
) -> State[dict[str, Any]]:
    """Compare the newest scenes of a folder or STAC catalogue with the statistics `model` carries of its training data.

    The result names the bands that `drifted` and has the number of `maskbridge drift`; where a band did, the run is
    named `Drifted`, and an event is emitted. Nothing is trained. `config` is what a training would be started with.
    """
    from pipelines.new_scenes import find_scenes

    begin()
    found = find_scenes(scenes, search)
    newest = sorted(found, key=lambda one: one.stat[1] if one.stat else 0)[-search.most :]
    if not newest:
        return Completed(message="no scenes", data={"scenes": 0, "drifted": [], "number": None, "bands": []})
    version = pinned(model)
    result = compare_task(version, [one.address for one in newest], limits)
    show_table("drift", version, result["bands"])
    if not result["drifted"]:
        return Completed(data=result)
    _tell(version, result, config)
    return Completed(name="Drifted", message=f"bands {', '.join(result['drifted'])}", data=result)


def _tell(model: str, result: dict[str, Any], config: RunConfig | None) -> None:
    from pipelines.registry import REFERENCE

    named = REFERENCE.fullmatch(model)
    name = named["name"] if named else "unregistered"
    emit_event(
        DRIFTED,
        resource={"prefect.resource.id": f"maskbridge.model.{name}", "prefect.resource.name": name},
        payload={
            **{"model": model, "run": str(runtime.flow_run.id), **result},
            "config": config.model_dump(mode="json") if config else None,
        },
    )
