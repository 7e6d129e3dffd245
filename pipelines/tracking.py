"""Runs in MLflow: parameters, curves, files and data digests of what was computed; and the model registry.

The client is explicit and MLflow's global state is never touched, so a flow, a test and a notebook can each track
to a store of their own. Tracking must not end a training: metrics that cannot be sent are kept and tried again.
"""

import getpass
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import InputError
from pipelines.keys import PARAM_LENGTH, TAG_LENGTH, flatten, text, valid_key
from pipelines.provenance import git_revision, versions
from pipelines.registry import (
    RegisteredModel,
    download,
    download_version,
    list_models,
    register,
    resolve,
)
from pipelines.tracking_store import artifact_location, connect, default_uri, first_line, readable, shown

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = [
    "RegisteredModel",
    "Run",
    "default_uri",
    "download",
    "download_version",
    "list_models",
    "register",
    "resolve",
    "track",
]

log = logging.getLogger(__name__)

EXPERIMENT = "maskbridge"
DATA_TAG = "data."
BATCH = 1000  # metrics in one request: MLflow's limit
PARAM_BATCH = 100  # parameters in one request: MLflow's limit
FLUSH_S = 5.0  # a curve is at most this old in the page; one value a request costs 5 ms, 200 in one 30 ms
KEPT = 100_000  # metrics kept for a store that is away; an hour of training at 25 values a second


class Run:
    """One run of an experiment; made by `track`. Not for use from several threads at once."""

    def __init__(self, client: "MlflowClient", run_id: str, uri: str) -> None:
        self.client = client
        self.run_id = run_id
        self.uri = uri
        self._waiting: list[Any] = []
        self._sent_at = time.monotonic()
        self._away = False

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings, nested ones as `a.b`. A run continued with other settings keeps the first value."""
        from mlflow.entities import Param

        with readable(self.uri):
            known = self.client.get_run(self.run_id).data.params
            fresh = []
            for key, value in flatten(values).items():
                name, shown_value = valid_key(key), text(value, PARAM_LENGTH)
                if name not in known:
                    fresh.append(Param(name, shown_value))
                elif known[name] != shown_value:
                    log.warning("run %s keeps %s=%s (now %s)", self.run_id, name, known[name], shown_value)
            for start in range(0, len(fresh), PARAM_BATCH):
                self.client.log_batch(self.run_id, params=fresh[start : start + PARAM_BATCH])

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log numbers, nested ones as `a.b`; None and what is no number is left out. Sent in batches."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for key, value in flatten(values).items():
            if isinstance(value, int | float):
                self._waiting.append(Metric(valid_key(key), float(value), now, step))
        del self._waiting[:-KEPT]
        if len(self._waiting) >= BATCH or time.monotonic() - self._sent_at > FLUSH_S:
            self.flush()

    def flush(self) -> bool:
        """Send the waiting metrics; False (and one warning) where the store is away and they are still kept."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self._sent_at = time.monotonic()
        try:
            while self._waiting:
                self.client.log_batch(self.run_id, metrics=self._waiting[:BATCH])
                del self._waiting[:BATCH]
        except (MlflowException, SQLAlchemyError) as error:
            if not self._away:
                log.warning("%s does not take metrics, keeping them: %s", shown(self.uri), first_line(error))
            self._away = True
            return False
        self._away = False
        return True

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Store a file or a folder's content under `folder` of the run's files."""
        path = Path(path)
        send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        with readable(self.uri):
            send(self.run_id, str(path), folder)

    def tag(self, name: str, value: Any) -> None:
        """Set one tag."""
        with readable(self.uri):
            self.client.set_tag(self.run_id, valid_key(name), text(value, TAG_LENGTH))

    def data(self, digests: Mapping[str, str]) -> None:
        """Record which bytes were used: {file or set: sha256} as tags `data.<name>`."""
        for name, digest in digests.items():
            self.tag(DATA_TAG + name, digest)


@contextmanager
def track(
    name: str,
    *,
    experiment: str = EXPERIMENT,
    uri: str | None = None,
    run_id: str | None = None,
    system_metrics: bool = False,
) -> Iterator[Run]:
    """A run named `name`: FINISHED when the block ends, FAILED when it raises, KILLED when it is interrupted.

    `run_id` continues a run (a resumed training). `system_metrics` samples CPU, memory and accelerator every
    10 s. InputError within 10 s where the store is away at the start; later failures to send metrics are told
    in the log and never raised.
    """
    uri = uri or default_uri()
    client = connect(uri)
    with readable(uri):
        if run_id is None:
            run_id = client.create_run(
                _experiment(client, experiment, uri), run_name=name, tags=_standard_tags()
            ).info.run_id
        else:
            client.update_run(run_id, status="RUNNING")
    run = Run(client, run_id, uri)
    monitor = _monitor(run, run_id) if system_metrics else None
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        if monitor is not None:
            monitor.finish()
        _end(run, status)


def _end(run: Run, status: str) -> None:
    """Send what waits and close the run; a store that is away by now costs a warning, not the result."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if not run.flush():
        log.warning("%d metrics of run %s were not stored", len(run._waiting), run.run_id)
    try:
        run.client.set_terminated(run.run_id, status)
    except (MlflowException, SQLAlchemyError) as error:
        log.warning("run %s could not be closed in %s: %s", run.run_id, shown(run.uri), first_line(error))


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    """Id of the experiment, made where it is not there (by us or, at the same moment, by another process)."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location(uri))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise InputError(f"{shown(uri)}: experiment {name} was deleted; restore it or name another")
    return found.experiment_id


def _standard_tags() -> dict[str, str]:
    """The tags MLflow's page knows (who, what program, which commit) and the versions."""
    tags = {f"version.{name}": version for name, version in versions().items()}
    tags["mlflow.source.name"] = "maskbridge"
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a passwd entry; OSError from Python 3.13 on
        log.debug("no user name to record")
    revision = git_revision()
    if revision:
        tags["mlflow.source.git.commit"] = revision
    return tags


def _monitor(run: Run, run_id: str) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, tracking_uri=run.uri)
    monitor.start()
    return monitor
