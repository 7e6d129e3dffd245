"""Where runs and models are kept: the MLflow address, a client for it, and one clear line when it is not there.

MLflow is imported by `connect` alone; addresses can be looked at without it. Clients are explicit: nothing here
sets MLflow's global address, so two stores can be used in one process.
"""

import gc
import logging
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pipelines.telemetry  # noqa: F401  before mlflow, which reads its switches at import
from adapters.errors import InputError
from pipelines.json_logs import redacted

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

DATABASE = "mlflow.db"
ARTIFACTS = "mlruns"
PROBE_S = 5.0
SQLITE = "sqlite:///"

# MLflow's own defaults (7 retries, 120 s each) hold the first call to a dead server for 246 s.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # a large artifact on a slow store answers late
}


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in the working folder (absolute, so a later chdir is harmless)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or SQLITE + str(Path.cwd() / DATABASE)


def shown(uri: str) -> str:
    """The address without user and password, fit for messages."""
    return re.sub(r"//[^/@]+@", "//***@", uri)


def database_file(uri: str) -> Path | None:
    """The file of a SQLite address, None for any other store."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside the SQLite file; None leaves it to the server."""
    file = database_file(uri)
    return (file.parent / ARTIFACTS).as_uri() if file else None


def connect(uri: str | None = None) -> "MlflowClient":
    """A client of `uri` (default `default_uri()`) that has been seen to answer.

    Raises InputError in one line, within 10 s, where nothing answers. A SQLite file is made if need be.
    """
    uri = uri or default_uri()
    check_address(uri)
    is_alive(uri)
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)

    with _without_collecting():
        from mlflow.tracking import MlflowClient

        file = database_file(uri)
        if file is not None:
            _ensure_database(file)
        with readable(uri):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    return client


@contextmanager
def _without_collecting() -> Iterator[None]:
    """No garbage collection meanwhile: what MLflow and SQLAlchemy import stays, and looking through it again and again
    took a quarter of a short command's time (3.3 s of processor time, 2.5 without)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def check_address(uri: str) -> None:
    """InputError for an address at which no store can be."""
    if "://" not in uri or uri.startswith("file:"):
        raise InputError(f"{shown(uri)}: MLflow keeps no runs in a folder; use sqlite:///{DATABASE} or a server")


def is_alive(uri: str) -> None:
    """InputError, within 5 s, where a server does not answer; databases are asked when they are used."""
    if uri.startswith(("http://", "https://")):
        _probe(uri)


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """Turn what MLflow and its database raise into one InputError line that names the store."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise InputError(f"{shown(uri)}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, without passwords; MLflow's and SQLAlchemy's go on for pages."""
    lines = redacted(str(error)).strip().splitlines()
    return lines[0].removeprefix("INVALID_PARAMETER_VALUE: ") if lines else type(error).__name__


def _probe(uri: str) -> None:
    """Ask the server's /health; any HTTP answer but a server error will do, even "who are you?"."""
    bare = re.sub(r"//[^/@]+@", "//", uri).rstrip("/")  # urllib takes user:password@ for a part of the name
    try:
        with urllib.request.urlopen(f"{bare}/health", timeout=PROBE_S):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return
        reason = f"answers {error.code}"
    except (OSError, ValueError) as error:  # ValueError: no valid address
        reason = f"does not answer ({getattr(error, 'reason', error)})"
    raise InputError(
        f"{shown(uri)}: the MLflow server {reason}; start it, or unset MLFLOW_TRACKING_URI to use ./{DATABASE}"
    )


def _ensure_database(file: Path) -> None:
    """Make a complete database under another name and link it into place.

    MLflow migrates a fresh file in place: of four processes that started together all four died ("expected to
    match one row"), and one killed in the middle leaves a file no later run can open. Here the first to finish
    wins, the others use its file, and nobody sees a half-made one.
    """
    if file.exists():
        return
    from mlflow.tracking import MlflowClient

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent, ignore_cleanup_errors=True)
        with folder as temporary:
            fresh = Path(temporary) / "fresh.db"
            uri = SQLITE + str(fresh)
            with readable(uri):
                MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
            # MLflow keeps `fresh` open; the copy is nobody's.
            copy = Path(shutil.copyfile(fresh, Path(temporary) / "copy.db"))
            try:
                os.link(copy, file)
            except FileExistsError:
                log.debug("%s: another process made it first", file)
    except OSError as error:
        raise InputError(f"{file}: cannot make the MLflow database here: {error.strerror or error}") from error
