"""Renaming by tables: what a published checkpoint calls a tensor → what it is called here.

A table is a sequence of `(theirs, ours)`. `{i}` stands for a number, the same on both sides, and `(a|b)` for either
spelling. A row covers all tensors of a module: `.weight`, `.bias` and batch-norm statistics follow by themselves.
`in_proj[0]`, `[1]`, `[2]` on our side are the query, key and value rows of a fused projection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Table = Sequence[tuple[str, str]]

WHOLE = -1
_LEAVES = "weight|bias|running_mean|running_var|num_batches_tracked"


@dataclass(frozen=True)
class Renaming:
    """What becomes of each tensor of a checkpoint.

    sources: our name → {part (WHOLE, or 0, 1, 2 of a fused projection): their name}. left_over: their name → why it is
    not needed. unexpected: their names no row knows.
    """

    sources: dict[str, dict[int, str]] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    def incomplete(self) -> list[str]:
        """Our names of fused projections of which a part is missing."""
        return [ours for ours, parts in self.sources.items() if WHOLE not in parts and len(parts) < 3]


def rename(names: Iterable[str], table: Table, left_over: Table) -> Renaming:
    """Look every name up; `left_over` is a table of names that are not needed and why.

    ValueError where two names of the checkpoint mean one tensor here.
    """
    rows = [(_pattern(theirs), ours) for theirs, ours in table]
    reasons = [(_pattern(theirs), reason) for theirs, reason in left_over]
    result = Renaming()
    for name in names:
        reason = next((reason for pattern, reason in reasons if pattern.fullmatch(name)), None)
        if reason is not None:
            result.left_over[name] = reason
            continue
        found = next(((m, ours) for pattern, ours in rows if (m := pattern.fullmatch(name))), None)
        if found is None:
            result.unexpected.append(name)
            continue
        target, part = _target(*found)
        parts = result.sources.setdefault(target, {})
        if part in parts or (parts and WHOLE in (part, *parts)):
            rival = parts.get(part, next(iter(parts.values())))
            raise ValueError(f"the checkpoint has both {rival} and {name}, which are one tensor here ({target})")
        parts[part] = name
    return result


def under(theirs: str, ours: str, table: Table) -> list[tuple[str, str]]:
    """The rows with a prefix on each side."""
    return [(theirs + a, ours + b) for a, b in table]


def split_attention(theirs: str, ours: str, output: str = "out_proj") -> list[tuple[str, str]]:
    """Rows of an attention whose query, key and value projections are separate there and one here."""
    projections = [(f"{theirs}{name}_proj", f"{ours}in_proj[{part}]") for part, name in enumerate("qkv")]
    return [*projections, (f"{theirs}{output}", f"{ours}out_proj")]


def assemble(weights: Mapping[str, Tensor], parts: Mapping[int, str]) -> Tensor:
    """One tensor of ours from its parts, fused along the first axis in order."""
    if WHOLE in parts:
        return weights[parts[WHOLE]]
    return torch.cat([weights[parts[part]] for part in sorted(parts)])


def _pattern(theirs: str) -> re.Pattern[str]:
    text = theirs.replace(".", r"\.").replace("(", "(?:")
    text = re.sub(r"\{(\w)\}", r"(?P<\1>[0-9]+)", text)
    return re.compile(rf"{text}(?:[._](?P<leaf>{_LEAVES}))?")


def _target(match: re.Match[str], ours: str) -> tuple[str, int]:
    """Our name, and which third of a fused projection or WHOLE."""
    places = match.groupdict()
    leaf = places.pop("leaf")
    module, part = ours.format(**places), WHOLE
    if module.endswith("]"):
        module, part = module[:-3], int(module[-2])
    return (f"{module}.{leaf}" if leaf else module), part
