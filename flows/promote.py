"""Promotion as a Prefect run: what `maskbridge promote` does, started by an evaluation's event or by hand.

A refusal is a result: the run is completed, as `Refused`. Both outcomes are told as events about
`maskbridge.model.<name>`: `maskbridge.promoted` and `maskbridge.refused`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.states import Completed, State

from flows.artifacts import Bar, key, show_model
from flows.runs import at_leisure, begin, is_bad_luck, sweep_after
from pipelines.promotion.policy import Policy

PROMOTED, REFUSED = "maskbridge.promoted", "maskbridge.refused"


# Judging once more changes nothing: a try that ended half-way has moved no alias, or has told the ledger so.
@task(name="judge", retries=1, retry_delay_seconds=60, retry_condition_fn=is_bad_luck, cache_policy=NO_CACHE)
def judge(request: dict[str, Any], data: list[str], out: str | None) -> tuple[dict[str, Any], str]:
    """The promotion as `promotion.json` has it, and the same as a page."""
    from pipelines.confinement import confine
    from pipelines.promotion.frozen import load_frozen
    from pipelines.promotion.promote import Request, markdown, promote

    configs = load_frozen(data)
    for config in configs:
        confine({"data": config})
    bar = Bar("promote", request["name"])
    made = promote(Request(**request), configs, out, on_progress=lambda _, done, total: bar.seldom(done, total))
    return {**made.to_dict(), "says": made.report.refusal}, markdown(made)


@flow(name="promote", flow_run_name="promote-{name}", on_cancellation=[sweep_after], on_crashed=[sweep_after])
def promote(
    name: str,
    data: list[str],
    version: int | str | None = None,
    data_digest: str | None = None,
    out: str | None = None,
    scenes: list[str] | None = None,
    policy: Policy = Policy(),  # noqa: B008  (frozen)
    new_data: bool = False,
) -> State[dict[str, Any]]:
    """Judge a version as `maskbridge promote NAME --data …` does, and move @champion if every rule passes.

    `data` are run configs on the worker, one a domain; `scenes` are for the shadow run; `version` and `data_digest`
    come from the event of an evaluation.
    """
    begin()
    request = {
        "name": name,
        "version": str(version) if version not in (None, "") else None,
        "digest": data_digest or None,
        "new_data": new_data,
        "shadow": tuple(scenes or ()),
        "policy": policy,
    }
    made, page = judge(request, data, out)
    with at_leisure("the report"):
        create_markdown_artifact(page, key=key("promote", name, "report"), description=f"{name}/{made['version']}")
    show_model(f"models:/{name}/{made['version']}", made["version"], name)
    refused = [rule["rule"] for rule in made["rules"] if not rule["passed"]]
    emit_event(
        PROMOTED if made["passed"] else REFUSED,
        resource={"prefect.resource.id": f"maskbridge.model.{name}", "prefect.resource.name": name},
        payload={
            "name": name,
            "version": int(made["version"]),
            "previous": made["previous"],
            "rules": refused,
            "says": made["says"],
            "data_digest": made["data_digest"],
        },
    )
    if made["passed"]:
        return Completed(message=f"version {made['version']} is @champion", data=made)
    return Completed(name="Refused", message=made["says"][:500], data=made)
