"""Rule `data`: the data is the one this model's gate was frozen on, and the candidate has not learned from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.promotion.frozen import SHOWN, Frozen, changes
from pipelines.promotion.policy import Verdict


@dataclass(frozen=True)
class Expected:
    """What is known of the data: the digest somebody names (an evaluation's), and that of the champion's promotion."""

    named: str | None = None
    frozen: str | None = None
    contents: Mapping[str, str] | None = None  # of the frozen one


def check_data(data: Frozen, expected: Expected, provenance: Mapping[str, Any]) -> Verdict:
    """Digests agree, and nothing that trained or tuned the candidate judges it."""
    faults = []
    now = data.digest
    known = {now, *(data.digest_of(config.name) for config in data.configs)}
    if expected.named and not any(digest.startswith(expected.named) for digest in known):
        faults.append(f"stale: the evaluation was on data {expected.named[:SHOWN]}, this is {now[:SHOWN]}")
    if expected.frozen and now != expected.frozen:
        what = changes(expected.contents, data.contents) if expected.contents else ""
        faults.append(
            f"stale: this model's frozen data is {expected.frozen[:SHOWN]}, this is {now[:SHOWN]}"
            + (f" ({what})" if what else "")
            + "; --new-data freezes the gate on this one"
        )
    learned = data.learned(provenance)
    if learned:
        faults.append(f"the candidate was trained or tuned on {learned} that judge it")
    says = "; ".join(faults) or f"data {now[:SHOWN]}, {len(data.parts)} {data.NOUN}"
    return Verdict("data", not faults, says, {"digest": now, "learned": learned})
