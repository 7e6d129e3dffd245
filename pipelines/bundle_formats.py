"""Formats of bundle.json, and how a description of an older one becomes one of today's.

    1  to November 2026: without a seal
    2  `seal`: the hash of all else in the description, so that a changed threshold or adapter is found as changed
       weights are

A seal finds accidents and edits, not forgers, who can write a new one; the registry's own hashes find those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters.errors import InputError

FORMAT = "maskbridge-bundle"
FORMAT_VERSION = 2
SEAL = "seal"

Description = dict[str, Any]


def sealed(description: Description) -> Description:
    """The description with the seal of its content."""
    return {**description, SEAL: _seal_of(description)}


def upgraded(folder: Path, description: Description) -> Description:
    """`description` of any format so far as one of the newest. InputError for a newer one and a broken seal."""
    version = description.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"{folder}: bundle of format {version}, but this maskbridge reads 1 to {FORMAT_VERSION}; update maskbridge"
        )
    if version > 1 and description.get(SEAL) != (right := _seal_of(description)):
        raise InputError(
            f"{folder}: bundle.json was changed after it was written: its content has the hash {right}, "
            f"its seal is {description.get(SEAL)}"
        )
    for step in range(version, FORMAT_VERSION):
        description = _STEPS[step](description)
    return description


def _seal_of(description: Description) -> str:
    content = {key: value for key, value in description.items() if key != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _with_seal(description: Description) -> Description:
    """1 → 2."""
    return sealed({**description, "format_version": 2})


_STEPS: dict[int, Callable[[Description], Description]] = {1: _with_seal}
