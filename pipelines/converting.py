"""A published checkpoint becomes a bundle: the model converted, and an adapter made of what the checkpoint knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.class_lists import CLASS_MAPS, class_map
from adapters.classes import Class, ClassSet, value_key
from adapters.errors import InputError
from adapters.reading import did_you_mean, listing
from adapters.remote_sensing import rgb_aerial
from pipelines.bundle import save_bundle

if TYPE_CHECKING:
    from maskformer.config import ModelConfig
    from maskformer.conversion.account import Conversion, Facts

Kind = Literal["auto", "transformers", "detectron2"]
Task = Literal["semantic", "instance", "panoptic"]

DETECTRON2 = (".pkl", ".pth", ".pt")
STRIDE = 32  # tiles are a multiple of the coarsest map
DEFAULT_TILE = 512


def convert_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    kind: Kind = "auto",
    classes: Sequence[str] | None = None,
    things: str | None = None,
    task: Task | None = None,
) -> Conversion:
    """Convert `checkpoint` and write the bundle `out`; the account.

    checkpoint: a folder of transformers, or a file of detectron2. classes: other classes than the checkpoint's; names
    for them, where it has none. things: see `thing_flags`. task: what the checkpoint was trained for; neither its
    tensors nor its config say that, so by default it is the word in its name. InputError names what is wrong with the
    checkpoint.
    """
    chosen = kind_of(checkpoint) if kind == "auto" else kind
    from maskformer import convert  # torch: 2 s, which a mistyped path need not wait for

    read = convert.from_transformers if chosen == "transformers" else convert.from_detectron2
    try:
        model = read(checkpoint, classes=classes)
    except ValueError as error:
        raise InputError(str(error)) from error
    account = model.conversion
    name = checkpoint.resolve().stem
    task = task or task_in(name)
    adapter = adapter_of(name, model.config, account.facts, things, task)
    save_bundle(
        out,
        model,
        adapter,
        thresholds=account.facts.thresholds,
        provenance={
            "converted_from": f"{checkpoint.resolve().name} ({chosen})",
            "conversion": _summary(account),
            **({"task": task} if task else {}),
        },
    )
    return account


def kind_of(checkpoint: Path) -> Kind:
    """What a path looks like; InputError where nothing is there or it is neither."""
    if checkpoint.is_dir():
        if (checkpoint / "config.json").is_file():
            return "transformers"
        raise InputError(f"{checkpoint}: no config.json in it; expected a folder of transformers or a detectron2 file")
    if not checkpoint.exists():
        raise InputError(f"{checkpoint}: no such file or folder")
    if checkpoint.suffix in DETECTRON2:
        return "detectron2"
    if (checkpoint.parent / "config.json").is_file():
        raise InputError(f"{checkpoint}: one file of a folder of transformers; give the folder, {checkpoint.parent}")
    raise InputError(
        f"{checkpoint}: not a checkpoint; expected a folder of transformers (config.json and safetensors) or a "
        f"detectron2 file ({', '.join(DETECTRON2)})"
    )


def task_in(name: str) -> Task | None:
    """The task that a published checkpoint's name tells, as `mask2former-swin-tiny-coco-panoptic` does."""
    return next((task for task in get_args(Task) if task in name.casefold()), None)


def adapter_of(
    name: str, config: ModelConfig, facts: Facts, things: str | None = None, task: Task | None = None
) -> DomainAdapter:
    """The adapter of a converted model: 8-bit channels on the scale it was trained with, its classes, its tile.

    Three channels are red, green and blue. Classes of a published list (`adapters.class_lists`) take its kinds, values
    and colours. Where nothing says which classes are things, all are, and none of a semantic model.
    """
    names = _distinct(facts.classes or tuple(f"class {index + 1}" for index in range(config.num_classes)))
    known = published_list(names)
    if things is not None:
        flags = thing_flags(things, names)
    elif task == "semantic":
        flags = (False,) * len(names)
    else:
        flags = facts.things or (known.is_thing if known else (True,) * len(names))
    ignored = facts.ignore_index
    free = ignored is not None and known is None and all(value_key(label) != value_key(ignored) for label in names)
    own = known or [Class(label) for label in names]
    classes = ClassSet(
        tuple(replace(one, name=n, kind="thing" if flag else "stuff") for one, n, flag in zip(own, names, flags)),
        ignore_values=known.ignore_values if known else (ignored,) if free and ignored is not None else (),
    )
    tile = _tile(config, facts)
    settings: dict[str, Any] = {"tile": tile, "tile_overlap": tile // 8, "name": name, "photos": True}
    if task in ("semantic", "panoptic") or not all(flags):  # these were taught that a pixel is one thing or one stuff
        settings["overlap"] = "exclusive"
    settings["covers"] = task in ("semantic", "panoptic")
    return rgb_aerial(classes, **settings).with_channels(_channels(config.in_channels, facts))


def published_list(names: Sequence[str]) -> ClassSet | None:
    """The published class list of these classes: as many, in that order, by the first of their names."""

    def first(name: str) -> str:
        return value_key(name.split(",")[0])

    for title in CLASS_MAPS:
        known = class_map(title)
        same = sum(first(a) == first(b) for a, b in zip(names, known.names))
        if len(known) == len(names) and same >= 0.8 * len(names):  # some of ADE20K's go by several first names
            return known
    return None


def thing_flags(words: str, names: Sequence[str]) -> tuple[bool, ...]:
    """`all`, `none`, a number (the first so many) or names with commas between → whether each class is a thing."""
    if words in ("all", "none"):
        return (words == "all",) * len(names)
    if words.isdigit():
        if int(words) > len(names):
            raise InputError(f"--things {words}: there are {len(names)} classes")
        return tuple(index < int(words) for index in range(len(names)))
    known = {value_key(name) for name in names}
    wanted = _split(words, known)
    if not wanted:
        raise InputError("--things: expected names of classes, a number, all or none")
    for word in wanted:
        if value_key(word) not in known:
            raise InputError(f"--things: no class '{word}'{did_you_mean(word, names)}; there are {listing(names)}")
    chosen = {value_key(word) for word in wanted}
    return tuple(value_key(name) in chosen for name in names)


def _split(words: str, known: set[str]) -> list[str]:
    """Names with commas between; a name of `known` may hold commas itself, as ADE20K's "windowpane, window" does."""
    parts, found = words.split(","), []
    while parts:
        lengths = range(len(parts), 1, -1)
        length = next((n for n in lengths if value_key(",".join(parts[:n]).strip()) in known), 1)
        found.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    return [name for name in found if name]


def _channels(count: int, facts: Facts) -> ChannelSet:
    mean, std = facts.mean or (), facts.std or ()
    stated = len(mean) == len(std) == count
    if count != 3 and not stated:
        raise InputError(f"the checkpoint takes {count} channels and does not say their mean and spread (image_mean)")
    rgb = rgb_aerial(ClassSet((Class("any"),))).channels
    channels = tuple(rgb) if count == 3 else tuple(Channel(f"band {n}", (n,)) for n in range(1, count + 1))
    if stated:
        scales = zip(channels, mean, std, strict=True)
        channels = tuple(replace(channel, offset=offset, scale=scale) for channel, offset, scale in scales)
    return ChannelSet(channels)


def _tile(config: ModelConfig, facts: Facts) -> int:
    """The side the model was trained at, as a multiple of 32."""
    side = config.backbone_options.get("img_size") or facts.size or DEFAULT_TILE
    return max(-(-int(side) // STRIDE) * STRIDE, STRIDE)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that an earlier class has too (ADE20K has some)."""
    seen: set[str] = set()
    result = []
    for name in names:
        label, count = name.strip() or "class", 1
        while value_key(label) in seen:
            count += 1
            label = f"{name.strip() or 'class'} ({count})"
        seen.add(value_key(label))
        result.append(label)
    return result


def _summary(account: Conversion) -> dict[str, Any]:
    """What a bundle keeps of the account: counts, and what is not simply the checkpoint's."""
    return {
        "loaded": len(account.loaded),
        "renamed": len(account.renamed),
        "adapted": dict(account.adapted),
        "fresh": dict(account.fresh),
        "left_over": dict(account.left_over),
    }
