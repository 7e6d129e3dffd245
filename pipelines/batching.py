"""How many tiles go through the model at once, where the user left it open.

On a processor: twice as many as long as a tile gets quicker by it, found by a short trial on a tile of the scene. On an
accelerator: as many as fit its free memory, told from what one and two tiles take. What was found is kept with the
shards: a run that goes on, and every worker of one run, uses the same number. Scenes too small to pay for a trial take
one tile at a time.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipelines.scene import ScenePlan, open_bundle, open_scene

RECORD = "batch.json"
TILES_A_STEP = 64  # tiles of the scene for each tile of the largest batch tried: a trial takes 5 % of the run at most
MOST = {"cpu": 16}  # beyond, no processor gains anything
MOST_ELSEWHERE = 64
GAIN = 0.1  # share of a tile's time that a doubling has to save: less is the clock's own noise
ROOM = 0.5  # share of the free memory that a batch may take

Tile = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Trial:
    """The batch that was chosen, why, and the seconds a tile took with each that was tried."""

    batch: int
    why: str
    seconds_a_tile: dict[str, float] = field(default_factory=dict)


def settle_batch(plan: ScenePlan, work: Path) -> ScenePlan:
    """The plan with its batch: as asked for, as `work` has it, or by a trial that is then kept in `work`."""
    if plan.options.batch != "auto":
        return plan
    trial = read_trial(work)
    if trial is None:
        trial = _keep(_try(plan), work)
    return plan.model_copy(update={"batch": trial.batch})


def read_trial(work: Path) -> Trial | None:
    """What was found for the shards in `work`; None where nothing was, or the batch was given."""
    try:
        return Trial(**json.loads((work / RECORD).read_text()))
    except FileNotFoundError:
        return None


def choose_by_time(run: Callable[[int], None], most: int, bytes_a_tile: Callable[[], float], free: float) -> Trial:
    """Double the batch while a tile gets quicker by `GAIN`, up to `most` and while twice as many fit `ROOM` of `free`.

    run(n) predicts n tiles; bytes_a_tile() says how much memory each of the last run took.
    """
    seconds: dict[str, float] = {}
    batch, why = 1, f"{most} is the most that this scene pays a trial for"
    while True:
        run(batch)  # the first of a shape also builds what the library keeps for it
        began = time.perf_counter()
        run(batch)
        seconds[str(batch)] = round((time.perf_counter() - began) / batch, 4)
        if batch > 1 and seconds[str(batch)] > (1 - GAIN) * seconds[str(batch // 2)]:
            return Trial(batch // 2, f"{batch} tiles at once save less than {GAIN:.0%} of a tile's time", seconds)
        if 2 * batch > most:
            return Trial(batch, why, seconds)
        if 2 * batch * bytes_a_tile() > ROOM * free:
            return Trial(batch, f"{2 * batch} tiles at once may not fit the memory", seconds)
        batch *= 2


def choose_by_memory(run: Callable[[int], None], most: int, taken: Callable[[], float], free: float) -> Trial:
    """The largest power of two up to `most` that fits `ROOM` of `free` bytes, from what one and two tiles take.

    run(n) predicts n tiles; taken() gives the peak bytes of the last run.
    """
    run(1)
    one = taken()
    run(2)
    each = max(taken() - one, 1.0)
    batch = 1
    while 2 * batch <= most and one + (2 * batch - 1) * each <= ROOM * free:
        batch *= 2
    return Trial(batch, f"a tile takes {each / 2**20:.0f} MiB of {free / 2**20:.0f} MiB free")


def _try(plan: ScenePlan) -> Trial:
    most = MOST.get(plan.options.device, MOST_ELSEWHERE)
    most = min(most, len(plan.grid) // TILES_A_STEP)
    if most < 2:
        return Trial(1, "the scene is too small to pay for a trial")
    from pipelines.executors import threads
    from pipelines.shards import warm_predictor

    bundle = open_bundle(plan)
    predictor = warm_predictor(plan)
    tiles = plan.grid.tiles
    with open_scene(plan, bundle.adapter) as source:
        tile = source.read(tiles[len(tiles) // 2].window)
    tile = (tile[0], np.ones_like(tile[1]))  # the time of a tile with data, wherever the scene has it

    def run(count: int) -> None:
        predictor([tile] * count)

    with threads(plan.threads):
        if plan.options.device.startswith("cuda"):
            return choose_by_memory(run, most, *_accelerator(plan.options.device))
        return choose_by_time(run, most, _growth(), float(psutil.virtual_memory().available))


def _growth() -> Callable[[], float]:
    """Bytes by which this process has grown since, at its largest."""
    from pipelines.manifest import peak_rss_bytes

    before = psutil.Process().memory_info().rss
    return lambda: float(max(0, peak_rss_bytes() - before))


def _accelerator(device: str) -> tuple[Callable[[], float], float]:
    """A clock of peak memory that starts anew at each reading, and the bytes that are free."""
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    base = torch.cuda.memory_allocated(device)

    def taken() -> float:
        peak = torch.cuda.max_memory_allocated(device) - base
        torch.cuda.reset_peak_memory_stats(device)
        return float(peak)

    return taken, float(torch.cuda.mem_get_info(device)[0])


def _keep(trial: Trial, work: Path) -> Trial:
    """Write the trial into `work`; where another run of the same plan was first, its result is the one."""
    handle, temporary = tempfile.mkstemp(dir=work, prefix=".batch-")
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(trial), file)
    try:
        os.link(temporary, work / RECORD)
    except FileExistsError:
        return read_trial(work) or trial
    finally:
        Path(temporary).unlink()
    return trial


def as_record(trial: Trial | None) -> dict[str, Any]:
    """For run.json: nothing where the batch was given."""
    return {} if trial is None else {"why": trial.why, "trial_s_a_tile": trial.seconds_a_tile}
