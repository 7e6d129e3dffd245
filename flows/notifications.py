"""Tell somebody when a run fails, crashes or times out: one automation of Prefect's and one webhook.

    NOTIFY_WEBHOOK=https://… python -m flows.notifications      makes both, or makes them anew

The message is JSON with `text` (what chat systems show) and the run's name, state, message, id and page. The address is
kept as a secret block; the server calls it, so the server must be able to reach it.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client

NAME = "maskbridge: failed runs"
BLOCK = "maskbridge-failures"
VARIABLE = "NOTIFY_WEBHOOK"
STATES = ("Failed", "Crashed", "TimedOut", "Reaped")
PAYLOAD = """{
  "text": {{ ("Run " ~ flow_run.name ~ " of " ~ flow.name ~ ": " ~ flow_run.state.name) | tojson }},
  "flow": {{ flow.name | tojson }},
  "run": {{ flow_run.name | tojson }},
  "state": {{ flow_run.state.name | tojson }},
  "message": {{ (flow_run.state.message or "") | tojson }},
  "id": {{ (flow_run.id | string) | tojson }},
  "page": {{ (flow_run | ui_url) | tojson }}
}"""


def install(url: str) -> str:
    """Make block and automation, replacing earlier ones of these names; returns the automation's id."""
    from prefect.events import EventTrigger, Posture, ResourceSpecification
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import AutomationCore

    block: Any = Webhook(url=url, method="POST", headers={"content-type": "application/json"})
    webhook = block.save(BLOCK, overwrite=True)
    trigger = EventTrigger(
        posture=Posture.Reactive,
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        expect={f"prefect.flow-run.{state}" for state in STATES},
        for_each={"prefect.resource.id"},
        threshold=1,
        within=timedelta(0),
    )
    action = CallWebhook(block_document_id=webhook, payload=PAYLOAD)
    with get_client(sync_client=True) as client:
        for old in client.read_automations_by_name(NAME):
            client.delete_automation(old.id)
        return str(client.create_automation(AutomationCore(name=NAME, trigger=trigger, actions=[action])))


def main() -> int:
    """0 where it was made; 2 without an address."""
    url = os.environ.get(VARIABLE)
    if not url:
        sys.stderr.write(f"set {VARIABLE} to the address that takes the message\n")
        return 2
    install(url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
