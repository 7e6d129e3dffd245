"""Other classes, queries or channels than the checkpoint has: what fits is kept, and said.

Classes: rows are kept for classes of the same name, the others are fresh; "no object" is always kept. A checkpoint
whose classes have no names (or LABEL_0, LABEL_1, ...) takes as many given ones in its own order. Queries: see
`weights.repeat_queries`. Channels: see `weights.inflate_stem`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from maskformer.config import ModelConfig
from maskformer.conversion.account import Facts
from maskformer.weights import inflate_stem, repeat_queries

_CLASS_ROWS = re.compile(r"query_decoder\.class_embed\.(weight|bias)")
_QUERY_TABLES = re.compile(r"query_decoder\.(query_embed|query_feat)\.weight")
_STEM = re.compile(r"backbone\.network\.(conv1|patch_embed\.proj)\.weight")


@dataclass(frozen=True)
class Changes:
    """What the model shall have otherwise than the checkpoint; None: as the checkpoint.

    classes: names; their number is num_classes. rgb: which input channels are red, green and blue.
    """

    num_classes: int | None = None
    classes: Sequence[str] | None = None
    num_queries: int | None = None
    in_channels: int | None = None
    rgb: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            twice = [name for index, name in enumerate(self.classes) if name in self.classes[:index]]
            if twice:  # both rows would be the first one's, and the bundle's classes could not be told apart
                raise ValueError(f"classes: {twice[0]!r} is named twice")
            if self.num_classes not in (None, len(self.classes)):
                raise ValueError(f"num_classes: {self.num_classes}, but {len(self.classes)} classes are named")
            object.__setattr__(self, "num_classes", len(self.classes))

    def apply(self, config: ModelConfig) -> ModelConfig:
        """The config with the changes; ValueError where one is impossible."""
        names = ("num_classes", "num_queries", "in_channels")
        return config.replace(**{name: getattr(self, name) for name in names if getattr(self, name) is not None})

    def facts(self, facts: Facts) -> Facts:
        """The checkpoint's facts as far as they still hold."""
        if self.classes is not None and self.classes != facts.classes:
            return replace(facts, classes=tuple(self.classes), things=self._things(facts))
        if self.num_classes not in (None, len(facts.classes)):
            return replace(facts, classes=(), things=None)
        return facts

    def _things(self, facts: Facts) -> tuple[bool, ...] | None:
        kinds = dict(zip(facts.classes, facts.things or (), strict=False))
        if any(name not in kinds for name in self.classes or ()):
            return None
        return tuple(kinds[name] for name in self.classes or ())


def fit(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], changes: Changes, known: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The checkpoint's tensors (our names) in the shapes of the model's own → them, and how each was adapted.

    known: names of the checkpoint's classes. Tensors that differ for no stated reason are left as they are.
    """
    fitted, adapted = dict(given), {}
    for name, tensor in given.items():
        if name not in own:
            continue
        result, how = tensor, ""
        if _CLASS_ROWS.fullmatch(name):
            result, how = _class_rows(own[name], tensor, changes.classes, known)
        elif _QUERY_TABLES.fullmatch(name) and changes.num_queries is not None:
            result, how = _query_rows(own[name], tensor)
        elif _STEM.fullmatch(name) and (changes.in_channels is not None or changes.rgb is not None):
            result, how = _stem(own[name], tensor, changes.rgb)
        if how:
            fitted[name], adapted[name] = result, how
    return fitted, adapted


def _class_rows(own: Tensor, given: Tensor, wanted: Sequence[str] | None, known: Sequence[str]) -> tuple[Tensor, str]:
    """Rows by class, "no object" last. An equal number means the same classes unless names say otherwise."""
    nameless = wanted is None or all(re.fullmatch(r"LABEL_\d+", name) for name in known)
    if len(own) == len(given) and (nameless or tuple(wanted or ()) == tuple(known)):
        return given, ""
    if nameless and wanted is not None:  # one name forgotten would throw the whole class head away
        raise ValueError(
            f"classes: {len(wanted)} names, but the checkpoint has {len(given) - 1} classes without names; "
            "give as many, in its order (from Python, num_classes starts a new class head)"
        )
    result = own.clone()
    result[-1] = given[-1]
    kept = [name for name in wanted or () if name in known]
    for name in kept:
        result[list(wanted or ()).index(name)] = given[list(known).index(name)]
    names = f" ({', '.join(kept)})" if 0 < len(kept) <= 5 else ""
    fresh = len(own) - 1 - len(kept)
    return result, f'"no object" and {len(kept)} classes kept by name{names}, {fresh} fresh'


def _query_rows(own: Tensor, given: Tensor) -> tuple[Tensor, str]:
    count, known = len(own), len(given)
    how = "" if count == known else f"the first {count} of {known} queries"
    if count > known:
        how = f"{known} queries repeated to {count}, the copies with a little noise"
    return repeat_queries(given, count), how


def _stem(own: Tensor, given: Tensor, rgb: Sequence[int] | None) -> tuple[Tensor, str]:
    if rgb is None and own.shape[1] == given.shape[1]:
        return given, ""
    if given.shape[1] != 3:
        raise ValueError(f"in_channels: the checkpoint has {given.shape[1]}, and only 3 can become {own.shape[1]}")
    places = "" if rgb is None else f", red, green and blue at {', '.join(map(str, rgb))}"
    return inflate_stem(given, own.shape[1], rgb), f"stem of 3 channels inflated to {own.shape[1]}{places}"
