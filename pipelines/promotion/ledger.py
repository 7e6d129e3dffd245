"""The ledger: who moved which model where, and who tried, as runs of an MLflow experiment of its own.

An entry is a run: tags say what happened, metrics hold both models' scores, its files the whole report. Entries are
only ever added. The version a judgement was about carries the verdict as tags, too (`gate.*`).
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from adapters.errors import InputError
from pipelines.keys import TAG_LENGTH, text
from pipelines.tracking import Run, track
from pipelines.tracking_store import connect, default_uri, readable

EXPERIMENT = "maskbridge-ledger"
TAG = "ledger."
GATE_TAG = "gate."
MOST = 1000  # entries of a model that are looked at

Action = Literal["promoted", "refused", "rolled back"]


@dataclass(frozen=True)
class Entry:
    """One line of the ledger. Versions as strings, None where there was none; `data`: digest of the frozen data.

    previous: the champion before. run: the run that made the version. rules: those that refused.
    """

    action: Action
    name: str
    version: str
    previous: str | None
    who: str
    when: str  # ISO 8601, UTC
    run: str | None = None
    data: str | None = None
    rules: tuple[str, ...] = ()
    says: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    id: str = ""  # of the ledger's own run


def who() -> str:
    """The user of the MLflow server where one is named, else of this machine."""
    named = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a passwd entry
        return f"uid {os.getuid()}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextmanager
def writing(entry: Entry, uri: str | None = None) -> Iterator[Run]:
    """Add `entry`; it says FINISHED when the block ends and FAILED when what it tells of did not come about."""
    with track(f"{entry.action} {entry.name}/{entry.version}", experiment=EXPERIMENT, uri=uri, required=True) as run:
        _tag(run, entry)
        run.metrics(dict(entry.metrics))
        yield run


def read(name: str, uri: str | None = None) -> list[Entry]:
    """The finished entries of a model, newest first."""
    uri = uri or default_uri()
    client = connect(uri)
    with readable(uri):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        quoted = name.replace("'", "\\'")
        runs = client.search_runs(
            [experiment.experiment_id],
            f"tags.`{TAG}name` = '{quoted}' and attributes.status = 'FINISHED'",
            max_results=MOST,
            order_by=["attributes.start_time DESC"],
        )
    entries = [_entry(run) for run in runs]
    return sorted(entries, key=lambda entry: entry.when, reverse=True)


def tag_version(name: str, version: str, tags: Mapping[str, Any], uri: str | None = None) -> None:
    """Put `gate.*` tags on a version."""
    uri = uri or default_uri()
    client = connect(uri)
    with readable(uri):
        for key, value in tags.items():
            client.set_model_version_tag(name, version, GATE_TAG + key, text(value, TAG_LENGTH))


def _tag(run: Run, entry: Entry) -> None:
    from mlflow.entities import RunTag

    values = {
        **{key: getattr(entry, key) for key in ("action", "name", "version", "who", "when", "says")},
        **{key: getattr(entry, key) or "" for key in ("previous", "run", "data")},
        "rules": ",".join(entry.rules),
    }
    assert run.run_id is not None, "a required run has one"
    with readable(run.uri):  # one request: a rollback is to end in seconds
        run.client.log_batch(run.run_id, tags=[RunTag(TAG + key, text(v, TAG_LENGTH)) for key, v in values.items()])


def _entry(run: Any) -> Entry:
    tags = {key.removeprefix(TAG): value for key, value in run.data.tags.items() if key.startswith(TAG)}
    try:
        return Entry(
            action=tags["action"],
            name=tags["name"],
            version=tags["version"],
            previous=tags["previous"] or None,
            who=tags["who"],
            when=tags["when"],
            run=tags["run"] or None,
            data=tags["data"] or None,
            rules=tuple(filter(None, tags["rules"].split(","))),
            says=tags["says"],
            metrics=dict(run.data.metrics),
            id=run.info.run_id,
        )
    except KeyError as error:
        raise InputError(f"run {run.info.run_id}: no entry of the ledger, it lacks the tag {TAG}{error}") from None
