"""What may be thrown away, and throwing it away: shards of dead runs, half-written files, spools, old artifacts.

Looking and removing are apart: `stale_files` and `stale_artifacts` only look, and everything that is removed was looked
at once more in that moment. Nothing is removed that a living run holds, that a registered model is made of, or that is
younger than the policy says. Links are never followed, and results themselves are never touched.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import Field

from pipelines.config import Strict
from pipelines.samples import cache_folder
from pipelines.sinks.folder import HOST

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

DAY_S = 86_400.0
SHARDS = ".shards"
PARTIAL = re.compile(r"\..*\.partial-(?P<host>\w+)-(?P<pid>\d+)-\d+(\..*)?")
TEMPORARY = re.compile(r"\.(bundle|fetching|download|mlflow)-\w+|\..+\.\d+\.tmp")  # left by what was killed
EVENTS, LOCK = "events.jsonl", "lock"  # of a folder of the tracking journal
REMOVED_TAG = "maskbridge.artifacts_removed"
RUNNING = ("RUNNING", "SCHEDULED")
PAGE = 500


class RetentionPolicy(Strict):
    """For how long things are kept, in days. Inputs, results and registered models are kept for ever."""

    runs: float = Field(60.0, ge=1, description="Prefect's runs after their end, with their logs, tasks and artifacts")
    artifacts: float = Field(90.0, ge=1, description="files of MLflow runs that no registered model is made of")
    work: float = Field(3.0, gt=0, description="shards and half-written files of runs that are dead")
    spools: float = Field(30.0, gt=0, description="metrics that could not be sent to MLflow")
    folders: tuple[str, ...] = Field((), description="where runs write; default: MASKBRIDGE_RESULTS")

    def places(self) -> list[Path]:
        """The folders to look through, and the cache."""
        named = self.folders or tuple(filter(None, [os.environ.get("MASKBRIDGE_RESULTS")]))
        return [Path(one) for one in named] + [cache_folder().parent]


@dataclass(frozen=True)
class Stale:
    """One thing that may go."""

    kind: str  # shards, partial, temporary, spool, artifacts
    what: str  # path, or MLflow's run id
    days: float
    bytes: int


def stale_files(policy: RetentionPolicy, now: float | None = None) -> list[Stale]:
    """What dead runs left in the policy's folders. A folder that is not there holds nothing."""
    now = time.time() if now is None else now
    left = [found for place in policy.places() for found in _look(place, policy, now)]
    spool = Path(os.environ.get("MASKBRIDGE_SPOOL") or cache_folder().parent / "tracking")
    journals = [file.parent for file in sorted(spool.glob(f"*/{EVENTS}"))]
    return left + [found for one in journals for found in _stale("spool", one, policy.spools, now, lock=one / LOCK)]


def remove_file(stale: Stale) -> bool:
    """Remove it, unless somebody took it up again since; whether it is gone."""
    path = Path(stale.what)
    if stale.kind in ("shards", "spool"):
        return _remove_unheld(path, path / LOCK if stale.kind == "spool" else path)
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except FileNotFoundError:
        return True
    except OSError as error:
        log.warning("%s: cannot be removed: %s", path, error.strerror)
        return False
    return True


def stale_artifacts(client: MlflowClient, policy: RetentionPolicy, now: float | None = None) -> list[Stale]:
    """Ended runs older than the policy whose files no registered version needs; their numbers are kept."""
    now = time.time() if now is None else now
    needed = {version.run_id for version in _pages(client.search_model_versions)}
    experiments = [one.experiment_id for one in _pages(client.search_experiments)]
    before = int((now - policy.artifacts * DAY_S) * 1000)
    found = []
    for run in _pages(client.search_runs, experiments, f"attributes.end_time < {before}"):
        if run.info.status in RUNNING or run.info.run_id in needed or REMOVED_TAG in run.data.tags:
            continue
        size = _artifact_bytes(client, run.info.run_id)
        if size:
            days = (now - run.info.end_time / 1000) / DAY_S
            found.append(Stale("artifacts", run.info.run_id, days, size))
    return found


def remove_artifacts(client: MlflowClient, uri: str, stale: Stale) -> bool:
    """Remove a run's files, not its numbers, and say so on the run. False where it was registered in the meantime."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    run = client.get_run(stale.what)
    if any(client.search_model_versions(f"run_id='{stale.what}'")):
        return False
    store = get_artifact_repository(run.info.artifact_uri, tracking_uri=uri)
    for one in client.list_artifacts(stale.what):
        store.delete_artifacts(one.path)
    client.set_tag(stale.what, REMOVED_TAG, time.strftime("%Y-%m-%d", time.gmtime()))
    return True


def _look(place: Path, policy: RetentionPolicy, now: float) -> Iterator[Stale]:
    for parent, folders, files in os.walk(place):
        here = Path(parent)
        if here.name == SHARDS:
            for name in list(folders):
                folders.remove(name)
                yield from _stale("shards", here / name, policy.work, now, lock=here / name)
        for name in [*folders, *files]:
            kind, days = _kind(here / name, policy)
            if kind:
                if name in folders:
                    folders.remove(name)
                yield from _stale(kind, here / name, days, now)


def _kind(path: Path, policy: RetentionPolicy) -> tuple[str, float]:
    """What a name says it is, and how old it must be; ("", 0) for what stays."""
    partial = PARTIAL.fullmatch(path.name)
    if partial:
        if partial["host"] == HOST and psutil.pid_exists(int(partial["pid"])):
            return "", 0.0
        return "partial", policy.work
    if TEMPORARY.fullmatch(path.name):
        return "temporary", policy.work
    return "", 0.0


def _stale(kind: str, path: Path, days: float, now: float, *, lock: Path | None = None) -> Iterator[Stale]:
    newest, size = _extent(path)
    age = (now - newest) / DAY_S
    if age >= days and (lock is None or _with_lock(lock, lambda: None)):
        yield Stale(kind, str(path), age, size)


def _extent(path: Path) -> tuple[float, int]:
    """Time of the newest change below `path`, and its bytes."""
    newest, size = 0.0, 0
    for one in (path, *path.rglob("*")) if path.is_dir() and not path.is_symlink() else (path,):
        with suppress(FileNotFoundError):
            status = one.lstat()
            newest = max(newest, status.st_mtime)
            size += status.st_size if not one.is_dir() else 0
    return newest, size


def _remove_unheld(folder: Path, lock: Path) -> bool:
    """Remove under the lock: who comes now waits, sees that it is gone, and makes another."""
    if not _with_lock(lock, lambda: shutil.rmtree(folder, ignore_errors=True)):
        return False
    if folder.parent.name == SHARDS:
        with suppress(OSError):
            folder.parent.rmdir()
    return True


def _with_lock(lock: Path, act: Callable[[], None]) -> bool:
    """Do `act` under the lock of a file or folder. False where somebody holds it, or it is a link."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:  # nobody ever held it
        act()
        return True
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        act()
    except OSError:  # held, or a file system without locks: then nobody can know
        return False
    finally:
        os.close(handle)
    return True


def _artifact_bytes(client: MlflowClient, run: str, folder: str | None = None) -> int:
    found = client.list_artifacts(run, folder)
    return sum(_artifact_bytes(client, run, one.path) if one.is_dir else one.file_size or 0 for one in found)


def _pages(search: Any, *arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page: Sequence[Any] = search(*arguments, max_results=PAGE, page_token=token)
        yield from page
        token = getattr(page, "token", None)
        if not token:
            return
