"""Back to the version before: the alias first, everything else after it. Imports nothing that computes."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from adapters.errors import InputError
from pipelines.promotion.aliases import CHAMPION, PREVIOUS, aliases
from pipelines.promotion.ledger import Entry, now, read, tag_version, who, writing
from pipelines.tracking_store import connect, default_uri, readable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollback:
    """What moved. `alias_s`: seconds from the store's answer to who is champion until the alias had moved."""

    name: str
    version: str
    left: str
    previous: str | None  # where @previous points now
    alias_s: float


def rollback(name: str, *, version: str | None = None, uri: str | None = None) -> Rollback:
    """Move @champion to @previous (or to `version`), and @previous one further back, as the ledger remembers it.

    InputError where there is nothing to go back to. What fails behind the move is logged: the champion is what counts.
    """
    uri = uri or default_uri()
    client = connect(uri)
    started = time.monotonic()
    known = aliases(client, uri, name)
    left, target = known.get(CHAMPION), version or known.get(PREVIOUS)
    if left is None:
        raise InputError(f"{name}: has no @{CHAMPION} to roll back")
    if target is None:
        raise InputError(f"{name}: has no @{PREVIOUS} to go back to; --version names one")
    if target == left:
        raise InputError(f"{name}: version {target} is @{CHAMPION} already")
    with readable(uri):  # an unknown version is MLflow's own error, in one line
        client.set_registered_model_alias(name, CHAMPION, target)
    alias_s = time.monotonic() - started
    previous = None
    try:
        previous = _before(read(name, uri), target, {left, target})
        _move_previous(name, previous, uri)
        with writing(Entry("rolled back", name, target, left, who(), now(), metrics={"alias_s": alias_s}), uri):
            tag_version(name, left, {"rolled_back": now()}, uri)
    except InputError as error:
        log.warning("%s: version %s is @%s, but the rest was not recorded: %s", name, target, CHAMPION, error)
    return Rollback(name, target, left, previous, alias_s)


def _before(entries: list[Entry], version: str, gone: set[str]) -> str | None:
    """Whom `version` followed when it was promoted last."""
    for entry in entries:
        if entry.action == "promoted" and entry.version == version:
            return entry.previous if entry.previous not in gone else None
    return None


def _move_previous(name: str, version: str | None, uri: str) -> None:
    client = connect(uri)
    with readable(uri):
        if version is not None:
            client.set_registered_model_alias(name, PREVIOUS, version)
        elif PREVIOUS in client.get_registered_model(name).aliases:
            client.delete_registered_model_alias(name, PREVIOUS)
