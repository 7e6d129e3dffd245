"""A trained model's tensors into a model of other channels, classes or queries: what each new row is made of.

Nothing here knows names of channels or classes; who does says it in a `Recipe` of weights over the old ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from maskformer.weights import repeat_queries

FRESH_LOGIT = -10.0  # of a class nobody has learned: p = 5e-5, so that the others keep theirs, and a gradient of 1

_CLASS_HEADS = ("query_decoder.class_embed.", "network.segmentation_head.")
_CLASS_PLANES = ("query_decoder.centre_embed.", "query_decoder.semantic_embed.")  # a row a class, none for "no object"
_QUERY_TABLES = ("query_decoder.query_embed.weight", "query_decoder.query_feat.weight")


@dataclass(frozen=True)
class Recipe:
    """inputs: (new channels, old channels) weights: the new stem's channel i is Σ_j inputs[i, j] · the old one's j.

    classes: (new classes, old classes): rows of the class head likewise; a row of zeros is a class nobody has learned.
    """

    inputs: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Transfer:
    """What became of the tensors: names in the model, but those of the old one in `unused`."""

    kept: tuple[str, ...] = ()
    mapped: Mapping[str, str] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """One line of counts, and one for each tensor that was mapped or is fresh for a reason."""
        counts = {"kept": self.kept, "mapped": self.mapped, "fresh": self.fresh, "unused": self.unused}
        lines = ["tensors: " + ", ".join(f"{len(names)} {title}" for title, names in counts.items())]
        for title, reasons in (("mapped", self.mapped), ("fresh", self.fresh), ("unused", self.unused)):
            by_reason: dict[str, list[str]] = {}
            for name, reason in reasons.items():
                by_reason.setdefault(reason, []).append(name)
            for reason, names in by_reason.items():
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                lines.append(f"  {title}: {reason}: {', '.join(names[:3])}{more}")
        return "\n".join(lines)


def transfer(model: nn.Module, old: Mapping[str, Tensor], recipe: Recipe) -> Transfer:
    """Load what fits of `old` (a state dict of the same family) into `model`; the account.

    Tensors of equal name and shape are kept, unless they are the stem or the class head and the recipe changes them.
    """
    own = model.state_dict()
    stem = _stem(old, recipe.inputs.shape[1])
    new: dict[str, Tensor] = {}
    kept, mapped, unused = [], {}, {}
    for name, given in old.items():
        if name not in own:
            unused[name] = "the new model has no such part"
            continue
        made, how = _made(name, given, own[name], recipe, name == stem)
        if made is None:
            unused[name] = how
        elif how:
            new[name], mapped[name] = made, how
        else:
            new[name] = made
            kept.append(name)
    model.load_state_dict(new, strict=False)
    fresh = {name: "the old model has none of this name and shape" for name in own if name not in new}
    return Transfer(tuple(kept), mapped, fresh, unused)


def _made(name: str, given: Tensor, own: Tensor, recipe: Recipe, is_stem: bool) -> tuple[Tensor | None, str]:
    """The tensor for the new model and how it was made ("" as it is), or None and why not."""
    inputs, classes = recipe.inputs, recipe.classes
    if is_stem and not _is_identity(inputs):
        made = torch.einsum("ij,ojhw->oihw", inputs.to(given), given)
        how = f"{inputs.shape[1]} input channels became {inputs.shape[0]}"
        return (made, how) if made.shape == own.shape else (None, "another stem")
    spare = 1 if name.startswith(_CLASS_HEADS) else 0 if name.startswith(_CLASS_PLANES) else None
    if spare is not None and not _is_identity(classes) and len(given) == classes.shape[1] + spare:
        rows = _class_rows(given, classes)
        how = f"{classes.shape[1]} classes became {classes.shape[0]}"
        return (rows, how) if rows.shape == own.shape else (None, "another class head")
    if name in _QUERY_TABLES and given.shape != own.shape and given.shape[1:] == own.shape[1:]:
        return repeat_queries(given, len(own)), f"{len(given)} queries became {len(own)}"
    if given.shape == own.shape:
        return given, ""
    return None, f"its shape {tuple(given.shape)} is not the new model's {tuple(own.shape)}"


def _class_rows(given: Tensor, classes: Tensor) -> Tensor:
    """Rows of the classes as the recipe says; a row beyond them ("no object", last) stays as it was."""
    count = classes.shape[1]
    rows = torch.tensordot(classes.to(given), given[:count], dims=1)
    if given.ndim == 1:  # the bias
        rows[classes.sum(1) == 0] = FRESH_LOGIT
    return torch.cat((rows, given[count:]))


def _stem(old: Mapping[str, Tensor], channels: int) -> str | None:
    """The first convolution that looks at the picture."""
    names = (
        name for name, tensor in old.items() if tensor.ndim == 4 and name.startswith(("backbone.", "network.encoder."))
    )
    first = next(names, None)
    return first if first is not None and old[first].shape[1] == channels else None


def _is_identity(table: Tensor) -> bool:
    return table.shape[0] == table.shape[1] and torch.equal(table, torch.eye(len(table), dtype=table.dtype))
