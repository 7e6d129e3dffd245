"""Runs in MLflow: parameters, curves, files and data digests of what was computed; and the model registry.

The client is explicit and MLflow's global state is never touched, so a flow, a test and a notebook can each track
to a store of their own. Tracking never ends a run: all that is told goes to a journal on disk first and from there to
MLflow, by a thread, every few seconds. What a store that is away did not take is sent by the next run or by
`maskbridge sync`, once (see `tracking_journal` and `tracking_sender`).
"""

import getpass
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import InputError
from pipelines.json_logs import redacted
from pipelines.keys import TAG_LENGTH, flatten, text, valid_key
from pipelines.provenance import git_revision, versions
from pipelines.registry import (
    RegisteredModel,
    download,
    download_version,
    list_models,
    register,
    resolve,
)
from pipelines.tracking_journal import Journal, open_journal
from pipelines.tracking_sender import Away, Sender, send_leftovers
from pipelines.tracking_store import check_address, default_uri, first_line, shown

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
FLUSH_S = 5.0  # a curve is at most this old in the page; one value a request costs 5 ms, 200 in one 30 ms
RETRY_S = 30.0  # between two questions whether a store that was away is back
PATIENCE_S = 10.0  # at most this long a run waits at its end for a store that is busy or away


class Run:
    """One run of an experiment; made by `track`. May be told from several threads."""

    def __init__(self, journal: Journal, uri: str) -> None:
        self.uri = uri
        self.sender = Sender(journal, uri)
        self._journal = journal
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._away_since: float | None = None
        self._thread = threading.Thread(target=self._send_often, daemon=True, name="maskbridge-tracking")

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None while the store has not been reached yet."""
        known = self._journal.header.get("run_id")
        return str(known) if known else None

    @property
    def client(self) -> "MlflowClient":
        """InputError where the store does not answer."""
        return self.sender.client

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings, nested ones as `a.b`. A run continued with other settings keeps the first value."""
        self._journal.append("params", values={valid_key(key): value for key, value in _plain(values).items()})

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log numbers, nested ones as `a.b`; None and what is no number is left out."""
        numbers = {
            valid_key(key): float(value) for key, value in flatten(values).items() if isinstance(value, int | float)
        }
        if numbers:
            self._journal.append("metrics", step=step, time=int(time.time() * 1000), values=numbers)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Store a file or a folder's content, as it is now, under `folder` of the run's files."""
        try:
            place = self._journal.keep(Path(path))
        except OSError as error:
            log.warning("%s: not kept for MLflow: %s", path, error.strerror or error)
            return
        self._journal.append("artifact", file=place, folder=folder)

    def tag(self, name: str, value: Any) -> None:
        """Set one tag."""
        self._journal.append("tags", values={valid_key(name): text(value, TAG_LENGTH)})

    def data(self, digests: Mapping[str, str], context: str = "") -> None:
        """Record which bytes were used, {file or set: sha256}: as tags `data.<name>`, and as the run's datasets.

        `context` says what for: training, validation, test.
        """
        if digests:
            tags = {valid_key(DATA_TAG + name): digest for name, digest in digests.items()}
            self._journal.append("tags", values=tags)
            self._journal.append("inputs", digests=dict(digests), context=context)

    def model(self, folder: Path, name: str, alias: str | None, tags: Mapping[str, str]) -> str | None:
        """Register the model folder as a new version of `name`; None where that has to wait for the store.

        InputError where the store refuses it. Use `registry.register`.
        """
        try:
            place = self._journal.keep(folder, verbatim=True)
        except OSError as error:
            raise InputError(
                f"{self._journal.folder}: cannot keep the model here: {error.strerror or error}"
            ) from error
        self._journal.append("model", file=place, name=name, alias=alias, tags=dict(tags))
        refused = len(self.sender.refused)
        self.flush()
        if len(self.sender.refused) > refused:
            raise InputError(f"{shown(self.uri)}: {self.sender.refused[-1]}")
        return self.sender.versions.get(name)

    def flush(self) -> bool:
        """Send what waits; False (and one warning) where the store is away and it is still kept."""
        with self._sending:
            return self._try()

    def start(self) -> None:
        self._thread.start()

    def end(self, status: str) -> None:
        """Send what is left and close the run; where the store is away that costs a warning, not the result."""
        self._journal.append("end", status=status, time=int(time.time() * 1000))
        self._closing.set()
        until = time.monotonic() + PATIENCE_S
        if not self._sending.acquire(timeout=PATIENCE_S):  # a request hangs; its thread ends with the process
            self._say_kept()
            return
        try:
            whole = self._try(until)
        finally:
            self._sending.release()
        self._thread.join(timeout=1.0)
        if whole:
            with suppress(Away):
                send_leftovers(self.uri, until)
        elif self._away_since is None:
            self._say_kept()
        self._journal.close(discard=whole)

    def _send_often(self) -> None:
        """The thread: what was told until now, every few seconds; of earlier runs what they could not send."""
        tidy = True
        while not self._closing.wait(FLUSH_S if self._away_since is None else RETRY_S):
            with self._sending:
                if self._closing.is_set() or not self._try():
                    continue
            if tidy:
                with suppress(Away):
                    send_leftovers(self.uri)
                tidy = False

    def _try(self, until: float = float("inf")) -> bool:
        """Send under the lock. The first failure in a row is told."""
        try:
            self.sender.ask()
            whole = self.sender.send(until)
        except Away as error:
            if self._away_since is None:
                log.warning("%s; the run goes on, and %s", error, _kept())
            self._away_since = time.monotonic()
            return False
        self._away_since = None
        return whole

    def _say_kept(self) -> None:
        log.warning("%s has not taken all of run %s; %s", shown(self.uri), self._journal.header["name"], _kept())


@contextmanager
def track(
    name: str,
    *,
    experiment: str = EXPERIMENT,
    uri: str | None = None,
    key: str | None = None,
    system_metrics: bool = False,
    required: bool = False,
) -> Iterator[Run]:
    """A run named `name`: FINISHED when the block ends, FAILED when it raises, KILLED when it is interrupted.

    A `key` that was used before continues that run (a resumed training). `system_metrics` samples CPU, memory and
    accelerator every 10 s. A store that is away costs one warning within 10 s and nothing else: what it did not take
    is sent later. With `required` that is an InputError at the start. An address that can be none is one always.
    """
    uri = uri or default_uri()
    check_address(uri)
    journal = _journal(key or uuid.uuid4().hex)
    journal.describe(
        address=shown(uri), experiment=experiment, name=redacted(name), tags=_standard_tags(), ended=False,
        began_ms=journal.header.get("began_ms", int(time.time() * 1000)),
    )  # fmt: skip
    run = Run(journal, uri)
    journal.append("begin")
    if required:
        _require(run)
    else:
        run.flush()
    run.start()
    monitor = _monitor(run, journal.header["began_ms"]) if system_metrics else None
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
        run.end(status)


def _require(run: Run) -> None:
    try:
        run.sender.ask()
        run.sender.send()
    except Away as error:
        run._journal.close(discard=True)
        raise InputError(str(error)) from error


def _journal(key: str) -> Journal:
    """The key's journal; another's where a living process has it, and a temporary one where the spool is shut."""
    try:
        journal = open_journal(key)
        if journal is None:
            log.warning("run %s is tracked by another process; this one is tracked as a new run", key)
            journal = open_journal(uuid.uuid4().hex)
        assert journal is not None
        return journal
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="maskbridge-tracking-"))
        log.warning("%s; what MLflow does not take at once is kept in %s", first_line(error), folder)
        return Journal(folder, os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600))


def _kept() -> str:
    return "what MLflow did not take is kept: the next run sends it, or `maskbridge sync`"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat, and of kinds JSON has; anything else as its text."""
    simple = (str, int, float, list, tuple, type(None))
    return {key: value if isinstance(value, simple) else str(value) for key, value in flatten(values).items()}


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


def _monitor(run: Run, began_ms: int) -> Any:
    from pipelines.system_metrics import Monitor

    return Monitor(lambda values: run.metrics(values, step=int(time.time() - began_ms / 1000)))
