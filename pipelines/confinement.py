"""Paths that come from outside (a flow's parameters) stay inside the folders this machine gives to runs.

Who may start a run types its parameters, and the worker opens them with its own rights. `MASKBRIDGE_ROOTS` names the
folders a run may touch, as PATH does (`/data:/outputs`); `MASKBRIDGE_ADDRESSES` the beginnings of addresses it may read
(`https://tiles.example.org/ s3://scenes/`, parted by spaces). Where neither is set nothing is confined: that is a
desktop, where the user's own rights are the limit. Where one is set, everything it does not name is refused.

The check follows symbolic links and `..` as the file system does. It cannot hold a root against somebody who may write
inside it and swaps a link after the check: give roots to people you trust with what they hold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.errors import InputError

ROOTS = "MASKBRIDGE_ROOTS"
ADDRESSES = "MASKBRIDGE_ADDRESSES"
OWN_NAMES = ("models:/", "sample:")  # the registry's and the samples' references; both check hashes
WORDS = {"timm"}  # a value of `weights`
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# GDAL takes these for files, but what is behind them may be anywhere: /vsicurl/https://…, GTIFF_DIR:1:/etc/…, and a
# whole VRT written out in the place of a name.
INDIRECT = re.compile(r"/vsi\w+/|[A-Za-z0-9_]{2,}:(?!//)|\s*[<{]")
MAGIC = re.compile(r"[*?\[{]")
OWN_SERVERS = ("MLFLOW_TRACKING_URI",)

PATH_FIELDS = frozenset(
    {
        *("source", "scenes", "pictures", "studies", "labels", "folder", "path", "aoi", "model", "bundle", "out"),
        *("folders", "folds", "data", "weights", "init_from", "uri", "address", "adapter"),
    }
)
"""Names of parameters and config fields that hold a path or an address."""


def roots() -> tuple[Path, ...]:
    """The folders runs may touch, resolved; none where nothing is confined."""
    named = os.environ.get(ROOTS, "")
    return tuple(Path(part).expanduser().resolve() for part in named.split(os.pathsep) if part.strip())


def addresses() -> tuple[str, ...]:
    """Beginnings of addresses runs may read."""
    return tuple(os.environ.get(ADDRESSES, "").split())


def is_confined() -> bool:
    """Whether this machine confines its runs at all."""
    return bool(roots() or addresses())


def confined(path: str | Path, what: str = "path") -> str:
    """`path` as it was given, once it is known to lie inside a root; InputError in one line where it does not.

    References to the registry (`models:/…`) and to samples pass. A pattern (`scenes/*.tif`) passes where its fixed
    beginning does, it does not climb (`..`) behind it, and nothing that it finds now is a link to the outside.
    """
    text = str(path)
    if not is_confined() or text.startswith(OWN_NAMES):
        return text
    if "\0" in text:
        raise InputError(f"{what}: a path with a zero byte")
    if ADDRESS.match(text):
        return _address(text, what)
    if INDIRECT.match(text):
        raise InputError(f"{text}: {what} must be a plain path or an address here ({ROOTS} is set)")
    if not any(_inside(text, root) for root in roots()):
        named = os.pathsep.join(map(str, roots())) or "empty"
        raise InputError(f"{text}: {what} lies outside of the folders for runs ({ROOTS} is {named})")
    return text


def confine(parameters: Mapping[str, Any]) -> None:
    """Check every path among named values, also in mappings, lists and pydantic models; InputError names the first bad.

    For a flow, first thing: `confine(runtime.flow_run.parameters)`. A string is a path by the name of its field
    (`PATH_FIELDS`); a test holds every string parameter of every flow against that list.
    """
    if is_confined():
        for name, value in parameters.items():
            _confine(name, value)


def _confine(name: str, value: Any) -> None:
    if isinstance(value, str | Path):
        if name.rpartition(".")[2] in PATH_FIELDS and value not in WORDS | _own_servers():
            confined(value, name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _confine(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _confine(name, inner)
    elif hasattr(value, "model_fields_set"):  # pydantic
        _confine(name, dict(value))


def _own_servers() -> set[str]:
    """What this machine itself is told to use is no stranger's choice."""
    return {os.environ[name] for name in OWN_SERVERS if os.environ.get(name)}


def _address(text: str, what: str) -> str:
    allowed = addresses()
    climbs = ".." in re.split(r"[/\\]|%2[fF]|%5[cC]", text.replace("%2e", ".").replace("%2E", "."))
    if any(text.startswith(beginning) for beginning in allowed) and not climbs:
        return text
    shown = re.sub(r"//[^/@]+@", "//***@", text).partition("?")[0]
    raise InputError(
        f"{shown}: {what} is no address that runs may read ({ADDRESSES} is {' '.join(allowed) or 'empty'})"
    )


def _inside(text: str, root: Path) -> bool:
    fixed = _fixed_beginning(text)
    if fixed is None or not fixed.resolve().is_relative_to(root):
        return False
    if fixed == Path(text):
        return True
    pattern = str(Path(text).absolute().relative_to(fixed.absolute()))
    return all(found.resolve().is_relative_to(root) for found in fixed.glob(pattern))


def _fixed_beginning(text: str) -> Path | None:
    """The path without its pattern; None where the pattern climbs."""
    path = Path(text)
    if not MAGIC.search(text) or path.exists():
        return path
    parts = path.parts
    first = next(number for number, part in enumerate(parts) if MAGIC.search(part))
    return None if ".." in parts[first:] else Path(*parts[:first])
