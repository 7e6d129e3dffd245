"""Nested settings and scores as the flat, limited keys and values MLflow takes."""

import json
import re
from collections.abc import Mapping
from typing import Any

KEY_LENGTH = 250  # MLflow's limits, 3.17
PARAM_LENGTH = 6000
TAG_LENGTH = 5000  # 8000 in 3.17, 5000 before


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; numpy scalars become numbers, empty mappings vanish."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif hasattr(value, "tolist"):
            flat[name] = value.tolist()
        else:
            flat[name] = value
    return flat


def valid_key(name: str) -> str:
    """A key with other characters than MLflow allows replaced by `_`, cut to its limit."""
    return re.sub(r"[^\w.\- /]", "_", name)[:KEY_LENGTH]


def text(value: Any, limit: int) -> str:
    """A value as text, cut with an ellipsis at `limit`; lists as JSON."""
    plain = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | tuple) else str(value)
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."
