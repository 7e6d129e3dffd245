"""From a journal to MLflow, in order, and so that an event told twice counts once.

A sender may be killed between MLflow's answer and the mark in the journal, and tells that event again next time. Runs
are found by a tag with the journal's key before one is made; model versions by run and hash; metrics are equal in key,
step, time and value, which MLflow's database keeps once; parameters, tags and files are set to what they are.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

from adapters.errors import InputError
from pipelines.keys import PARAM_LENGTH, text
from pipelines.tracking_journal import Event, Journal, left_behind
from pipelines.tracking_store import artifact_location, connect, database_file, first_line, is_alive, shown

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

KEY_TAG = "maskbridge.key"
BATCH = 1000  # metrics in one request: MLflow's limit
PARAM_BATCH = 100  # parameters in one request: MLflow's limit
DIGEST = 36  # characters of a dataset's digest: MLflow's limit
# What the store says about the event itself; anything else may be other tomorrow.
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class Away(Exception):
    """The store does not take it now; all that was not taken stays in the journal."""


class Sender:
    """Sends one journal to the store at `uri`. Not for use from several threads at once."""

    def __init__(self, journal: Journal, uri: str) -> None:
        self.journal = journal
        self.uri = uri
        self.versions: dict[str, str] = {}  # of the models registered, by name
        self.refused: list[str] = []
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    def send(self, until: float = float("inf")) -> bool:
        """Send what waits; False where `until` (monotonic seconds) came first. Raises Away."""
        while events := self.journal.read():
            for kind, group in groupby(events, lambda event: event.said["kind"]):
                for part in _parts(kind, list(group)):
                    if time.monotonic() > until:
                        return False
                    self._send(kind, part)
                    self.journal.mark(part[-1].end)
        return True

    def ask(self) -> None:
        """Away where a server does not answer within 5 s: sooner than a request, and before MLflow is imported."""
        try:
            is_alive(self.uri)
        except InputError as error:
            self._client = None
            raise Away(str(error)) from error

    def run_id(self) -> str:
        """The run's id in MLflow, where it is made if need be."""
        known = self.journal.header.get("run_id")
        if known:
            return str(known)
        header, client = self.journal.header, self.client
        experiment = experiment_id(client, header["experiment"], self.uri)
        found = client.search_runs([experiment], f"tags.\"{KEY_TAG}\" = '{self.journal.key}'", max_results=1)
        if found:
            info = found[0].info
        else:
            tags = {**header["tags"], KEY_TAG: self.journal.key}
            with _once():
                info = client.create_run(experiment, header["began_ms"], tags, header["name"]).info
        self.journal.describe(run_id=info.run_id, began_ms=info.start_time)
        return str(info.run_id)

    def finish(self) -> None:
        """Close a run whose process was killed before it could. Raises Away."""
        if not self.journal.header.get("ended"):
            at = int(self.journal.last_told() * 1000)
            with self._faults("end"):
                self.client.set_terminated(self.run_id(), "KILLED", at)
            self.journal.describe(ended=True)

    def _send(self, kind: str, events: list[Event]) -> None:
        act = getattr(self, f"_{kind}", None)
        if act is None:
            log.warning("%s: an event that cannot be read was left out", self.journal.folder)
            return
        with self._faults(kind):
            act(self.run_id(), [event.said for event in events])

    @contextmanager
    def _faults(self, kind: str) -> Iterator[None]:
        """A refusal is told and the rest goes on; a store that is away ends the sending."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise Away(first_line(error)) from error
            self._refuse(kind, first_line(error))
        except FileNotFoundError as error:
            self._refuse(kind, f"{error.filename}: no such file")
        except (SQLAlchemyError, InputError, OSError) as error:  # requests' errors are OSErrors
            raise Away(first_line(error)) from error

    def _refuse(self, kind: str, reason: str) -> None:
        log.warning("%s does not take %s of %s: %s", shown(self.uri), kind, self.journal.header.get("name"), reason)
        self.refused.append(reason)

    def _begin(self, run_id: str, events: list[dict[str, Any]]) -> None:
        if self.journal.header.get("ended") or self.client.get_run(run_id).info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        self.journal.describe(ended=False)

    def _end(self, run_id: str, events: list[dict[str, Any]]) -> None:
        self.client.set_terminated(run_id, events[-1]["status"], events[-1]["time"])
        self.journal.describe(ended=True)

    def _metrics(self, run_id: str, events: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        rows = [
            Metric(key, float(value), event["time"], event["step"])
            for event in events
            for key, value in event["values"].items()
        ]
        for start in range(0, len(rows), BATCH):
            self.client.log_batch(run_id, metrics=rows[start : start + BATCH])

    def _params(self, run_id: str, events: list[dict[str, Any]]) -> None:
        from mlflow.entities import Param

        known = self.client.get_run(run_id).data.params
        fresh: dict[str, str] = {}
        for key, value in (pair for event in events for pair in event["values"].items()):
            before = known.get(key, fresh.get(key))
            if before is None:
                fresh[key] = text(value, PARAM_LENGTH)
            elif before != text(value, PARAM_LENGTH):
                log.warning("run %s keeps %s=%s (now %s)", run_id, key, before, value)
        rows = [Param(key, value) for key, value in fresh.items()]
        for start in range(0, len(rows), PARAM_BATCH):
            self.client.log_batch(run_id, params=rows[start : start + PARAM_BATCH])

    def _tags(self, run_id: str, events: list[dict[str, Any]]) -> None:
        from mlflow.entities import RunTag

        rows = [RunTag(key, value) for event in events for key, value in event["values"].items()]
        for start in range(0, len(rows), PARAM_BATCH):
            self.client.log_batch(run_id, tags=rows[start : start + PARAM_BATCH])

    def _inputs(self, run_id: str, events: list[dict[str, Any]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        rows = [
            DatasetInput(
                Dataset(name, digest[:DIGEST], "local", '{"uri": "(not recorded)"}'),
                [InputTag("mlflow.data.context", event["context"])],
            )
            for event in events
            for name, digest in event["digests"].items()
        ]
        self.client.log_inputs(run_id, rows)

    def _artifact(self, run_id: str, events: list[dict[str, Any]]) -> None:
        for event in events:
            path = self.journal.folder / event["file"]
            send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
            send(run_id, str(path), event["folder"])
            self.journal.forget(event["file"])

    def _model(self, run_id: str, events: list[dict[str, Any]]) -> None:
        from pipelines.registry import store_version

        for event in events:
            folder = self.journal.folder / event["file"]
            self.versions[event["name"]] = store_version(self.client, run_id, folder, event)
            self.journal.forget(event["file"])


def send_leftovers(uri: str, until: float = float("inf")) -> int:
    """Send what earlier runs could not tell the store at `uri`; how many journals were finished. Raises Away."""
    done = 0
    for journal in left_behind():
        whole = False
        try:
            if journal.header.get("address") == shown(uri) and time.monotonic() < until:
                sender = Sender(journal, uri)
                if sender.send(until):
                    sender.finish()
                    whole = journal.is_sent
        finally:
            journal.close(discard=whole)
        done += whole
    return done


def waiting() -> dict[str, int]:
    """Address → how many journals of ended or killed runs wait for it."""
    found: dict[str, int] = {}
    for journal in left_behind():
        address = journal.header["address"]
        found[address] = found.get(address, 0) + 1
        journal.close(discard=False)
    return found


def is_gone(uri: str) -> bool:
    """Whether `uri` is a SQLite file that is not there: sending would make an empty one."""
    file = database_file(uri)
    return file is not None and not file.exists()


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Id of the experiment, made where it is not there (by us or, at the same moment, by another process)."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location(uri)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise InputError(f"{shown(uri)}: experiment {name} was deleted; restore it or name another")
    return str(found.experiment_id)


def _parts(kind: str, events: list[Event]) -> Iterator[list[Event]]:
    """Events to be sent and marked together: metrics by the thousand, files and models one by one."""
    if kind in ("artifact", "model"):
        yield from ([event] for event in events)
        return
    part: list[Event] = []
    count = 0
    for event in events:
        size = len(event.said.get("values", ()))
        if part and kind == "metrics" and count + size > BATCH:
            yield part
            part, count = [], 0
        part.append(event)
        count += size
    yield part


_environment = threading.Lock()


@contextmanager
def _once() -> Iterator[None]:
    """No repeats by the HTTP client: a request that makes something may have been heard although no answer came."""
    with _environment:
        before = os.environ.get(RETRIES)
        os.environ[RETRIES] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[RETRIES]
            else:
                os.environ[RETRIES] = before
