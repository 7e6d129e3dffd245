"""YAML with a reason above a key: what `maskbridge plan` writes, for people to read and change."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

WIDTH = 100
KEY = re.compile(r"^(?P<indent> *(?:- )?)(?P<key>[A-Za-z_][\w.-]*):(?: |$)")


class _Dumper(yaml.SafeDumper):
    """Lists of plain values in one line; everything else a line a key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # list items further in than their key

    def ignore_aliases(self, data: Any) -> bool:
        return True  # `*id001` is no reading for people


def _represent_list(dumper: yaml.SafeDumper, data: Any) -> yaml.Node:
    plain = all(item is None or isinstance(item, (str, int, float, bool)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)


def dump(values: Mapping[str, Any], reasons: Mapping[str, str] | None = None, header: str = "") -> str:
    """`values` as YAML with `header` on top and each reason above its key, all as comments.

    reasons: by dotted path (`train.crop`); keys of list items count without their place (`data.labels`), and the
    reason stands at the first. KeyError for a reason whose key is not there, so that none is lost unseen.
    """
    left = dict(reasons or {})
    lines = [*_comment(header, "")] if header else []
    stack: list[tuple[int, str]] = []
    text = yaml.dump(without_none(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10 * WIDTH)
    for line in text.rstrip("\n").split("\n"):  # not splitlines: YAML keeps other line ends inside values
        match = KEY.match(line)
        if match:
            depth = len(match["indent"])
            stack = [(at, key) for at, key in stack if at < depth] + [(depth, match["key"])]
            reason = left.pop(".".join(key for _, key in stack), None)
            if reason:
                lines += _comment(reason, " " * (depth - 2 if "- " in match["indent"] else depth))
        lines.append(line)
    if left:
        raise KeyError(f"no such key: {', '.join(left)}")
    return "\n".join(lines) + "\n"


def without_none(value: Any) -> Any:
    """The same without keys whose value is None, which are defaults."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_none(item) for item in value]
    return value


def _comment(text: str, indent: str) -> list[str]:
    lines = []
    for paragraph in text.splitlines():
        lines += textwrap.wrap(paragraph, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ") or [
            f"{indent}#"
        ]
    return lines
