"""The flow around the gate: what it passes on, what it tells, and that a refusal is a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows import promote as module
from flows.promote import PROMOTED, REFUSED, promote
from pipelines.config import RunConfig, save_config
from pipelines.promotion.gate import Report
from pipelines.promotion.policy import Policy, Verdict
from pipelines.promotion.promote import Promotion, Request
from tests.models import adapter


@pytest.mark.parametrize("passes", [True, False])
def test_outcome_state_and_event(passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(name="north", adapter=adapter().to_dict(), data=({"source": "north.tif"},))
    save_config(config, tmp_path / "north.yaml")
    asked, told = [], []

    def judged(request: Request, data: list[RunConfig], out: str | None, **_: Any) -> Promotion:
        asked.append((request, [one.name for one in data]))
        verdict = Verdict("quality", passes, "iou of class road fell")
        return Promotion(request.name, request.version or "", "2", Report((verdict,), "ab" * 32, {}, True), "run")

    monkeypatch.setattr("pipelines.promotion.promote.promote", judged)
    monkeypatch.setattr(module, "emit_event", lambda event, **rest: told.append((event, rest)))
    policy = Policy(margin=0.01)
    data = [str(tmp_path / "north.yaml")]
    state = promote("roads", data, 3, data_digest="abab", policy=policy, return_state=True)  # version as the event's
    assert asked == [(Request("roads", "3", "abab", policy=policy), ["north"])]
    assert state.is_completed() and state.name == ("Completed" if passes else "Refused")
    [(event, rest)] = told
    assert event == (PROMOTED if passes else REFUSED)
    assert rest["resource"]["prefect.resource.id"] == "maskbridge.model.roads"
    assert rest["payload"]["version"] == 3 and rest["payload"]["rules"] == ([] if passes else ["quality"])
    assert rest["payload"]["previous"] == "2" and rest["payload"]["data_digest"] == "ab" * 32
