"""A version of a registered model through the gate, and the alias if it passes; a refusal is a result, not an error."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import RunConfig
from pipelines.keys import flatten
from pipelines.promotion.aliases import CHALLENGER, CHAMPION, aliases, crown
from pipelines.promotion.data import Expected
from pipelines.promotion.frozen import SHOWN, freeze
from pipelines.promotion.gate import Gate, Progress, Report
from pipelines.promotion.ledger import Entry, now, tag_version, who, writing
from pipelines.promotion.policy import Policy
from pipelines.registry import RegisteredModel, download_version, resolve
from pipelines.sinks.folder import atomic_write
from pipelines.tracking_store import connect, default_uri, readable

log = logging.getLogger(__name__)

FROZEN_TAG = "gate.frozen"  # of the registered model: digest of the data its gate is frozen on
CONTENTS_TAG = "gate.frozen_contents"  # and of its scenes, where they are few enough to be named
CONTENTS_LENGTH = 4500
REPORT, TEXT = "promotion.json", "promotion.md"


@dataclass(frozen=True)
class Request:
    """What is asked for. version: None takes @challenger, else the newest. digest: of the data an evaluation was on.

    new_data: judge on other data than the champion was promoted on, and freeze the gate on it.
    """

    name: str
    version: str | None = None
    digest: str | None = None
    new_data: bool = False
    shadow: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)
    dry_run: bool = False


@dataclass(frozen=True)
class Promotion:
    """The outcome. previous: the champion before, None for the first; entry: the ledger's run, None of a dry run."""

    name: str
    version: str
    previous: str | None
    report: Report
    entry: str | None

    @property
    def promoted(self) -> bool:
        return self.report.passed

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        head = {"name": self.name, "version": self.version, "previous": self.previous, "entry": self.entry}
        return {**head, **self.report.to_dict()}


def promote(
    request: Request,
    data: Sequence[RunConfig],
    out: str | Path | None = None,
    *,
    uri: str | None = None,
    on_progress: Progress | None = None,
) -> Promotion:
    """Judge the version on `data` beside @champion; where every rule passes, @champion moves and @previous stays.

    Leaves `out/promotion.json` and `out/promotion.md`, the version's `gate.*` tags and an entry in the ledger, passed
    or refused. InputError where there is nothing to judge, and where the champion changed meanwhile.
    """
    uri = uri or default_uri()
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
    candidate, previous = _versions(request, uri)
    mine = load_bundle_of(candidate)
    theirs = load_bundle_of(previous) if previous else None
    adapter = (theirs or mine).adapter
    with freeze(data, adapter) as frozen:
        expected = _expected(request, uri)
        report = gate_for(adapter)(frozen, request.policy, request.shadow, on_progress).judge(mine, theirs, expected)
    champion = previous.version if previous else None
    made = Promotion(candidate.name, candidate.version, champion, report, None)
    if not request.dry_run:
        made = _record(request, made, candidate, uri)
    if out is not None:
        write_report(made, Path(out))
    return made


def gate_for(adapter: DomainAdapter) -> type[Gate]:
    """The gate of scenes and pictures, or that of volumes."""
    if adapter.volume is None:
        return Gate
    from pipelines.promotion.volumes.gate import VolumeGate

    return VolumeGate


def load_bundle_of(model: RegisteredModel) -> Bundle:
    """The version's bundle, its files checked against the registry's hashes."""
    return load_bundle(download_version(model))


def write_report(made: Promotion, out: Path) -> None:
    """`promotion.json` and, for people, `promotion.md`."""
    for name, content in ((REPORT, json.dumps(made.to_dict(), indent=2) + "\n"), (TEXT, markdown(made))):
        with atomic_write(out / name) as temporary:
            Path(temporary).write_text(content, encoding="utf-8")


def markdown(made: Promotion) -> str:
    """The report as a page: the verdicts, then the scores they rest on, then the shadow run."""
    verdict = "passed" if made.promoted else f"refused by {', '.join(made.report.refused_by)}"
    lines = [
        f"# {made.name} version {made.version}: {verdict}",
        "",
        f"Champion before: {made.previous or 'none'}. Frozen data: {made.report.digest[:SHOWN]}.",
        "",
        "| rule | | |",
        "|---|---|---|",
        *(f"| {v.rule} | {'passed' if v.passed else '**refused**'} | {v.says} |" for v in made.report.verdicts),
    ]
    for verdict_of in made.report.verdicts:
        lines += _rows(verdict_of.rule, verdict_of.numbers)
    return "\n".join(lines) + "\n"


def _rows(rule: str, numbers: Mapping[str, Any]) -> list[str]:
    if "rows" in numbers:
        body = [
            f"| {row['what']} | {_cell(row['champion'])} | {_cell(row['candidate'])} | "
            f"{_cell(row.get('worst')) if 'worst' in row else ('yes' if row['judged'] else 'too few')} |"
            for row in numbers["rows"]
        ]
        last = "worst change" if rule == "quality" else "judged"
        return ["", f"## {rule}", "", f"| score | champion | candidate | {last} |", "|---|---|---|---|", *body]
    if "scenes" in numbers:
        body = [
            f"| {row['scene']} | {row['candidate']['objects']} | {row.get('champion', {}).get('objects', '-')} | "
            f"{_cell(row.get('agreement'))} | {_cell(row.get('objects_f1'))} | {row.get('worst') or '-'} |"
            for row in numbers["scenes"]
        ]
        head = "| scene | objects | champion's | agreement | objects' F1 | differ most around |"
        return ["", f"## {rule}", "", head, "|---|---|---|---|---|---|", *body]
    return []


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _versions(request: Request, uri: str) -> tuple[RegisteredModel, RegisteredModel | None]:
    """The candidate and the champion."""
    known = aliases(connect(uri), uri, request.name)
    wanted = request.version or known.get(CHALLENGER)
    candidate = resolve(f"models:/{request.name}/{wanted or 'latest'}", uri)
    if known.get(CHAMPION) == candidate.version:
        raise InputError(f"{candidate.reference}: is @{CHAMPION} already")
    champion = resolve(f"models:/{request.name}@{CHAMPION}", uri) if CHAMPION in known else None
    return candidate, champion


def _expected(request: Request, uri: str) -> Expected:
    with readable(uri):
        tags = connect(uri).get_registered_model(request.name).tags
    if request.new_data or FROZEN_TAG not in tags:
        return Expected(named=request.digest)
    contents = json.loads(tags[CONTENTS_TAG]) if tags.get(CONTENTS_TAG) else None
    return Expected(request.digest, tags[FROZEN_TAG], contents)


def _record(request: Request, made: Promotion, candidate: RegisteredModel, uri: str) -> Promotion:
    """The ledger's entry first, then the move: what moved is always written down."""
    report = made.report
    entry = Entry(
        action="promoted" if made.promoted else "refused",
        name=made.name,
        version=made.version,
        previous=made.previous,
        who=who(),
        when=now(),
        run=candidate.run,
        data=report.digest,
        rules=report.refused_by,
        says=report.refusal,
        metrics=_metrics(report),
    )
    with writing(entry, uri) as run:
        made = Promotion(made.name, made.version, made.previous, report, run.run_id)
        with tempfile.TemporaryDirectory() as folder:
            write_report(made, Path(folder))
            run.artifact(folder)
        if made.promoted:
            _move(made, uri)
            _freeze(made, uri)
        tags = {
            "decision": entry.action,
            "rules": ",".join(entry.rules),
            "report": entry.says,
            "data_digest": report.digest,
            "time": entry.when,
            "run": run.run_id,
        }
        tag_version(made.name, made.version, tags, uri)
    return made


def _move(made: Promotion, uri: str) -> None:
    """InputError where the champion is not the one this candidate was judged against."""
    client = connect(uri)
    champion = aliases(client, uri, made.name).get(CHAMPION)
    if champion != made.previous:
        raise InputError(
            f"{made.name}: version {champion} became @{CHAMPION} while version {made.version} was judged against "
            f"{made.previous or 'none'}; promote again"
        )
    crown(client, uri, made.name, made.version, made.previous)


def _freeze(made: Promotion, uri: str) -> None:
    """Later candidates are judged on this data."""
    contents = json.dumps({name: digest[:SHOWN] for name, digest in made.report.contents.items()})
    client = connect(uri)
    with readable(uri):
        client.set_registered_model_tag(made.name, FROZEN_TAG, made.report.digest)
        fits = contents if len(contents) <= CONTENTS_LENGTH else ""
        client.set_registered_model_tag(made.name, CONTENTS_TAG, fits)


def _metrics(report: Report) -> dict[str, float]:
    """Both models' scores, flat: `quality.iou of class road.candidate`."""
    found: dict[str, Any] = {}
    for verdict in report.verdicts:
        rows = verdict.numbers.get("rows")
        if rows:
            for row in rows:
                for side in ("candidate", "champion"):
                    found[f"{verdict.rule}/{row['what']}/{side}"] = row[side]
        else:
            found[verdict.rule] = {k: v for k, v in verdict.numbers.items() if k != "scenes"}
    return {
        key: float(value)
        for key, value in flatten(found).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value
    }
