"""Reading checked values out of JSON objects, with errors that say what was expected and what is there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from adapters.errors import InputError


def listing(values: Iterable[Any], most: int = 12) -> str:
    """The values in one line, cut after `most`."""
    items = [str(v) for v in values]
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return (", ".join(items[:most]) + rest) if items else "none"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def checked(data: Any, what: str, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """`data` as a dict whose keys are all in `known` and hold all of `required`, else InputError."""
    known = list(known)
    if not isinstance(data, Mapping):
        raise InputError(f"{what}: expected an object with {listing(known)}, found {type(data).__name__}")
    for key in data:
        if key not in known:
            raise InputError(f"{what}: unknown key '{key}'; known are {listing(known)}{did_you_mean(str(key), known)}")
    for key in required:
        if key not in data:
            raise InputError(f"{what}: '{key}' is missing; found {listing(data)}")
    return dict(data)


def one_of(value: Any, what: str, choices: Iterable[Any]) -> Any:
    """`value`, if it is one of the choices, else InputError."""
    choices = list(choices)
    if value not in choices:
        raise InputError(f"{what}: expected one of {listing(choices)}, found {value!r}")
    return value
