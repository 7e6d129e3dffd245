"""Shards on a Dask cluster: the client sends numbers, workers write shards to storage that all of them share.

No array crosses the network. Each worker process holds the model from its first shard on. Dask gives the shard of a
dead worker to another one; shards that were finished are on disk and stay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import InputError
from pipelines.scene import ScenePlan

if TYPE_CHECKING:
    from distributed import Client

    from pipelines.executors import ExecutorOptions

log = logging.getLogger(__name__)

RETRIES = 2  # of a shard that failed by itself; for dead workers Dask counts apart (allowed-failures)
TIMEOUT_S = 30.0  # for the scheduler to answer
SEEN_S = 30.0  # network file systems show a new file late


def run_on_dask(
    plan: ScenePlan,
    work: Path,
    numbers: Sequence[int],
    options: ExecutorOptions,
    on_shard: Callable[[int, bool], None],
) -> None:
    """Compute shards `numbers` of `plan` into `work` on the cluster at `options.address`, or one of this machine.

    Raises InputError for bad input, and where no scheduler answers; RuntimeError where a shard kept failing.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    with _client(plan, options) as client:
        futures = client.map(
            _compute,
            numbers,
            plan=plan.model_dump_json(),
            work=str(work.resolve()),
            key=[f"{plan.key[:16]}-{number}" for number in numbers],
            retries=RETRIES,
            pure=False,
        )
        number_of = {future.key: number for future, number in zip(futures, numbers, strict=True)}
        try:
            for future in as_completed(futures, loop=client.loop):
                number = number_of[future.key]
                kind, value = future.result()
                if kind == "input":
                    raise InputError(value)
                _see(plan, number, work)
                on_shard(number, value)
        except KilledWorker as error:
            raise RuntimeError(f"{plan.stem}: a shard killed its workers again and again: {error}") from error
        finally:
            client.cancel(futures)


def _compute(number: int, plan: str, work: str) -> tuple[str, Any]:
    """One shard, on a worker. Bad input is an answer, not an error: an error would be tried again."""
    from pipelines.shards import predict_shard, warm_up

    settled = _with_model_here(ScenePlan.model_validate_json(plan))
    try:
        warm_up(settled)
        return "done", predict_shard(settled, number, Path(work))
    except InputError as error:
        return "input", str(error)


def _with_model_here(plan: ScenePlan) -> ScenePlan:
    """A registered model need not lie on shared storage: a worker that has no copy fetches the very version."""
    if Path(plan.model).exists() or plan.model_version is None:
        return plan
    from pipelines.bundle import load_bundle
    from pipelines.registry import REFERENCE

    named = REFERENCE.fullmatch(plan.reference)
    if named is None:
        return plan
    bundle = load_bundle(f"models:/{named['name']}/{plan.model_version}", check_shapes=False)
    return plan.model_copy(update={"model": str(bundle.folder.resolve())})


def _see(plan: ScenePlan, number: int, work: Path) -> None:
    """The shard a worker wrote is here too."""
    import time

    from pipelines.shards import is_finished

    until = time.monotonic() + SEEN_S
    while not is_finished(plan, number, work):
        if time.monotonic() > until:
            raise InputError(f"{work}: a worker's shard is not seen here; --out must lie where all workers write to")
        time.sleep(0.2)


@contextmanager
def _client(plan: ScenePlan, options: ExecutorOptions) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    if options.address is not None:
        try:
            client = Client(options.address, timeout=TIMEOUT_S, set_as_default=False)
        except (OSError, ValueError) as error:  # nobody there; no address at all
            raise InputError(f"{options.address}: no Dask scheduler answers ({error})") from None
        with client:
            yield client
        return
    with (
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=options.count(plan),
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,  # type: ignore[no-untyped-call]
    ):
        yield client
