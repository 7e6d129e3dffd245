"""The new scenes of a folder or a STAC catalogue, each as a run of its own: what a nightly schedule calls.

A scene that was done is known by its record and costs nothing; one that cannot be read is named and does not stop the
others. The model's version is pinned when the run starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.states import Completed, State

from adapters.errors import InputError
from flows.artifacts import Bar, show_table
from flows.runs import begin, on_behalf_of_this_run, pinned, sweep_after
from flows.segment_scene import segment_scene
from pipelines.config import PredictOptions, WriteOptions
from pipelines.executors import ExecutorOptions
from pipelines.new_scenes import SceneSearch


def _run_name() -> str:
    return f"scenes-{Path(runtime.flow_run.parameters['scenes']).stem}"


@flow(name="segment-scenes", flow_run_name=_run_name, on_cancellation=[sweep_after], on_crashed=[sweep_after])
def segment_scenes(
    scenes: str,
    model: str,
    out: str,
    search: SceneSearch = SceneSearch(),  # noqa: B008  (frozen)
    options: PredictOptions = PredictOptions(),  # noqa: B008
    write: WriteOptions = WriteOptions(),  # noqa: B008
    executor: ExecutorOptions = ExecutorOptions(),  # noqa: B008
    overwrite: bool = False,
) -> State[dict[str, Any]]:
    """Predict what is new in `scenes`, a folder or a STAC catalogue, as `maskbridge predict` does scene by scene.

    The result says which scenes were `done`, how many were `found`, and which `failed` and why; the run is then
    `Partial`, and the next one tries those again. It fails where every scene did.
    """
    from pipelines.bundle import load_bundle
    from pipelines.new_scenes import find_scenes, note_done, prediction_key, without_the_done

    begin()
    version = pinned(model)
    key = prediction_key(load_bundle(version, check_shapes=False).digest, options, write)
    found = find_scenes(scenes, search)
    new = without_the_done(found, out, key, search.most)
    bar, done, failed = Bar("scenes", scenes), {}, {}
    for number, scene in enumerate(new, start=1):
        with on_behalf_of_this_run():
            state = segment_scene(
                *(scene.address, version, out, options),
                write=write,
                executor=executor,
                overwrite=overwrite,
                return_state=True,
            )
        result = state.result(raise_on_failure=False)
        if state.is_completed():
            note_done(scene, out, key, Path(str(result)))
            done[scene.address] = str(result)
        elif isinstance(result, InputError):
            failed[scene.address] = str(result)
        else:
            state.result()  # no fault of the scene's: the run ends here, and is resumed from its records
        bar.to(number, len(new))
    rows = [{"scene": Path(s).name, "outcome": o} for s, o in (*done.items(), *failed.items())]
    if rows:
        show_table("scenes", scenes, rows)
    outcome = {"found": len(found), "done": done, "failed": failed}
    if failed and not done:
        raise InputError(next(iter(failed.values())))
    if failed:
        return Completed(name="Partial", message=f"{len(failed)} of {len(new)} scenes failed", data=outcome)
    return Completed(data=outcome)
