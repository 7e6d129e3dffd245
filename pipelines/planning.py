"""`maskbridge plan`: look at the data and choose a run config that fits it, with the number behind each choice.

Bands and their statistics, classes, object sizes and densities are measured on the files; `sizing` holds the
rules that turn them into settings. Nothing is trained here, and no torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet, Units
from adapters.errors import InputError
from adapters.overlap import Overlap
from adapters.remote_sensing import fit_channels
from maskformer.config import ModelConfig
from maskformer.masks import MaskSet
from pipelines import sizing
from pipelines.annotations.options import LabelOptions
from pipelines.commented_yaml import dump
from pipelines.config import (
    BaselineOptions,
    DataItem,
    ModelOptions,
    PredictOptions,
    RunConfig,
    TrackingOptions,
    TrainOptions,
)
from pipelines.label_census import SPARSE, Census, take_census
from pipelines.pairing import Pair, find_pairs

# The small preset looks for centres of round objects; areas have none and take MaskFormer's own queries.
THING_PRESET, STUFF_PRESET = "maskformer-efficientnet-lite0-small", "mfenet-efficientnet-lite0"
WEIGHTS, WEIGHTS_FIT = "sample:efficientnet_lite0", "tf_efficientnet_lite0"
MINUTES_LEAST, MINUTES_MOST = 10.0, 60.0
OBJECTS_A_MINUTE = 60  # the demo learns 400 crowns well enough in a few minutes on two cores
# The demos' values, tuned there: short runs from ImageNet weights on a processor.
RATES = {"learning_rate": 1e-3, "backbone_multiplier": 0.6, "weight_decay": 0.01, "clip": 1.0, "ema": 0.98}
BASELINE_RATES = {"learning_rate": 1e-3, "backbone_multiplier": 1.0}
BATCH_PIXELS = 4 * 384 * 384  # four crops of 384 px train in less than 3 GiB
RGB, RGBN = ("red", "green", "blue"), ("red", "green", "blue", "nir")


@dataclass(frozen=True)
class PlanOptions:
    """What the user settled beforehand; None leaves it to the plan."""

    class_column: str | None = None
    default_class: str | None = None
    preset: str | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Plan:
    """A run config, the reason for each setting (by dotted key), and what the reader should know first."""

    config: RunConfig
    reasons: dict[str, str]
    header: str

    def text(self) -> str:
        """The config as YAML with its reasons; of each data item only what is not the default."""
        values = self.config.model_dump(mode="json")
        values["data"] = [_without_defaults(item) for item in self.config.data]
        return dump(values, self.reasons, self.header)


@dataclass(frozen=True)
class Survey:
    """What was measured: one entry a labelled scene."""

    adapter: DomainAdapter
    census: Census
    shapes: list[tuple[int, int]]
    objects: list[MaskSet]
    reports: list[dict[str, Any]]

    @property
    def boxes(self) -> list[np.ndarray]:
        """(N, 4) boxes of all objects; those of areas span the scene, because every crop may show them."""
        return [masks.boxes for masks in self.objects]

    @property
    def things(self) -> list[np.ndarray]:
        """Boxes of the objects that can be counted."""
        thing = np.array(self.adapter.classes.is_thing)
        return [masks.boxes[thing[masks.labels]] for masks in self.objects]

    @property
    def pieces(self) -> list[np.ndarray]:
        """What a split deals out, as boxes: things, or where there are none the pixel runs of the areas."""
        if any(self.adapter.classes.is_thing):
            return self.things
        return [runs_as_boxes(masks.runs) for masks in self.objects]

    @property
    def counts(self) -> dict[str, int]:
        """Objects a class, in the classes' order."""
        labels = np.concatenate([masks.labels for masks in self.objects])
        totals = np.bincount(labels, minlength=len(self.adapter.classes))
        return dict(zip(self.adapter.classes.names, totals.tolist(), strict=True))


def plan(data: Sequence[Path], labels: Sequence[Path], options: PlanOptions, folder: Path, name: str = "run") -> Plan:
    """A run config for the scenes in `data` with their labels; paths are written as seen from `folder`.

    Raises InputError where nothing is labelled, the labels hold no object, or bands and classes do not agree.
    """
    pairs = find_pairs(data, labels)
    labelled = [pair for pair in pairs if pair.labels is not None]
    if not labelled:
        raise InputError(
            f"{pairs[0].scene}: no labels found beside it or in --labels, so there is nothing to learn from; "
            "a trained model needs none: maskbridge predict MODEL SCENE --out DIR"
        )
    survey = _survey(labelled, options, name)
    if not sum(survey.counts.values()):
        raise InputError(f"{labelled[0].labels}: the labels hold no object on the scene; {survey.reports[0]}")
    return _settle(survey, labelled, pairs, options, folder, name)


def write_plan(made: Plan, path: Path, *, overwrite: bool = False) -> None:
    """Write the plan to `path`, whole or not at all. Raises InputError where it is there already."""
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; --overwrite replaces it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(made.text(), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _survey(labelled: Sequence[Pair], options: PlanOptions, name: str) -> Survey:
    from pipelines.annotations import read_annotations
    from pipelines.sources import open_for, open_source

    census = take_census([str(p.labels) for p in labelled], options.class_column, options.default_class)
    with ExitStack() as stack:
        plain = [stack.enter_context(open_source(pair.scene)) for pair in labelled]
        encoded = any(set(source.scales) != {1.0} or set(source.offsets) != {0.0} for source in plain)
        channels = declare_channels([source.channels for source in plain], plain[0].dtype, encoded)
        adapter = DomainAdapter(name, channels, census.classes, covers=census.covers, points=census.points)
        sources = [stack.enter_context(open_for(pair.scene, adapter)) for pair in labelled]
        adapter = adapter.with_channels(fit_channels(sources, channels))
        settings = LabelOptions(**census.settings)
        read = [read_annotations(str(p.labels), s, adapter, settings) for p, s in zip(labelled, sources, strict=True)]
        return Survey(
            adapter, census, [s.shape for s in sources], [a.objects for a in read], [dict(a.report) for a in read]
        )


def declare_channels(bands: Sequence[Sequence[str]], dtype: np.dtype, encoded: bool = False) -> ChannelSet:
    """Channels for scenes with these band names: those of the scene with the fewest bands, all of them.

    Three or four unnamed 8-bit bands are taken for red, green, blue (and near infrared), as nearly all such files
    are; other unnamed bands keep their numbers. Of `encoded` scenes, which say what their numbers mean (a scale, an
    offset), the meaning is taken.
    """
    units: Units = "physical" if encoded else "stored"
    fewest = min(bands, key=len)
    usual = {3: RGB, 4: RGBN}.get(len(fewest), ()) if np.dtype(dtype) == np.uint8 else ()
    unnamed = all(name == f"band{number}" for number, name in enumerate(fewest, start=1))
    coloured = [name.casefold() for name in fewest[:3]] == list(RGB)
    names = usual if usual and (unnamed or coloured) else fewest
    find = [(shown, number) for number, shown in enumerate(fewest, start=1)]
    return ChannelSet(
        tuple(
            Channel(name, tuple(f for f in sought if f != name), units=units)
            for name, sought in zip(names, find, strict=True)
        )
    )


def _settle(
    survey: Survey,
    labelled: Sequence[Pair],
    pairs: Sequence[Pair],
    options: PlanOptions,
    folder: Path,
    name: str,
) -> Plan:
    """Measured facts to settings, each with its reason."""
    shapes, classes = survey.shapes, survey.adapter.classes
    crop = sizing.choose_crop(survey.things, shapes)
    overlap = sizing.choose_overlap(survey.things, crop.value)
    queries = sizing.choose_queries(survey.boxes, shapes, crop.value)
    unit = "objects" if any(classes.is_thing) else "rows of pixels"
    split = sizing.choose_split(survey.pieces, shapes, overlap.value, unit)
    policy, why_policy = choose_policy(survey.objects, survey.adapter.covers)
    adapter = DomainAdapter(
        name,
        survey.adapter.channels,
        classes,
        overlap=policy,
        covers=survey.adapter.covers,
        tile=crop.value,
        tile_overlap=overlap.value,
        points=survey.adapter.points,
    )
    preset = options.preset or (THING_PRESET if all(classes.is_thing) else STUFF_PRESET)
    weights = WEIGHTS if _backbone(preset) == WEIGHTS_FIT else None
    total = sum(survey.counts.values())
    minutes = options.minutes or float(np.clip(round(total / OBJECTS_A_MINUTE), MINUTES_LEAST, MINUTES_MOST))
    batch = int(np.clip(BATCH_PIXELS // crop.value**2, 2, 8))
    task = "instance" if all(classes.is_thing) else "semantic" if not any(classes.is_thing) else "panoptic"
    config = RunConfig(
        name=name,
        adapter=adapter.to_dict(),
        data=tuple(
            DataItem(
                source=_as_seen_from(pair.scene, folder),
                labels=_as_seen_from(str(pair.labels), folder),
                label_options=LabelOptions(**survey.census.settings),
            )
            for pair in labelled
        ),
        split=split.value,
        model=ModelOptions(preset=preset, overrides={"num_queries": queries.value}, weights=weights),
        train=TrainOptions(minutes=minutes, crop=crop.value, batch=batch, **RATES),
        baseline=BaselineOptions(**BASELINE_RATES),
        predict=PredictOptions(task=task),  # type: ignore[arg-type]
        tracking=TrackingOptions(register_as=name),
    )
    reasons = {
        "adapter.channels": _why_channels(adapter.channels, survey),
        "adapter.classes": _why_classes(survey),
        "adapter.overlap": why_policy,
        "adapter.tile": "the size of a training crop: the model has learned objects with this much around them",
        "adapter.tile_overlap": overlap.why,
        "split": split.why,
        "model.preset": "small enough to train without a GPU; its ImageNet weights come in a published package"
        if weights
        else "as asked; without `weights` it starts from nothing (`timm` takes its hub's)",
        "model.overrides": f"num_queries: {queries.why}",
        "train.minutes": f"a first look at {total} objects on two cores; more is better",
        "train.batch": f"as many {crop.value} px crops as train in about 3 GiB",
        "train.crop": crop.why,
        "baseline": "a per-pixel network trained beside, as long again; remove the section to save the time",
        "predict.task": f"{'all' if task != 'panoptic' else 'some'} classes are "
        f"{'things: objects one by one' if task != 'semantic' else 'stuff: areas'}",
    }
    if "boxes" in survey.census.settings:
        reasons["data.labels"] = (
            "box labels: taken for the ellipse inside each box, an assumption; `label_options: {boxes: box}` fills them"
        )
    return Plan(config, reasons, _header(survey, pairs, labelled))


def _backbone(preset: str) -> str:
    try:
        return ModelConfig.from_preset(preset).backbone
    except ValueError as error:
        raise InputError(f"--preset: {error}") from None


def runs_as_boxes(runs: np.ndarray) -> np.ndarray:
    """(R, 3) runs (row, start, stop) as (R, 4) boxes one pixel high."""
    return np.stack([runs[:, 0], runs[:, 1], runs[:, 0] + 1, runs[:, 2]], axis=1)


def choose_policy(objects: Sequence[MaskSet], covers: bool) -> tuple[Overlap, str]:
    """Whether objects may share pixels, from whether those of the labels do."""
    within = across = 0
    for masks in objects:
        if not len(masks):
            continue
        layers = masks.union(masks.labels)
        within += int(masks.areas.sum() - layers.areas.sum())
        everything = masks.union(np.zeros(len(masks), np.int64))
        across += int(layers.areas.sum() - everything.areas.sum())
    if covers:
        return "exclusive", "the classes cover the plane: a pixel has one"
    if within:
        return "free", f"objects of one class share {within} px in the labels, and keep doing so"
    if across:
        return "layered", f"objects of different classes share {across} px in the labels, those of one class none"
    return "exclusive", "no two objects of the labels share a pixel"


def _why_channels(channels: ChannelSet, survey: Survey) -> str:
    wide = " and cut at the 0.1 % ends" if any(channel.clip for channel in channels) else ""
    return f"all bands of the data; offset and scale are its mean and deviation{wide}"


def _why_classes(survey: Survey) -> str:
    areas = np.zeros(len(survey.adapter.classes))
    for masks in survey.objects:
        areas += np.bincount(masks.labels, masks.areas, len(areas))
    pixels = sum(height * width for height, width in survey.shapes)
    counts = [
        f"{item.name}: {f'{count} objects, ' if item.kind == 'thing' else ''}{100 * area / pixels:.2g} % of the pixels"
        for item, count, area in zip(survey.adapter.classes, survey.counts.values(), areas, strict=True)
    ]
    return f"{survey.census.why}. {'; '.join(counts)}"


def _why_so_little(survey: Survey) -> list[str]:
    """A word where several classes lie on so few pixels that the rest is probably not background."""
    pixels = sum(height * width for height, width in survey.shapes)
    share = sum(int(masks.areas.sum()) for masks in survey.objects) / pixels
    if survey.adapter.covers or len(survey.adapter.classes) < 3 or share > SPARSE:
        return []
    return [
        f"LOOK: {100 * share:.2g} % of the pixels carry a label, and the rest counts as background. If it is merely "
        "not labelled, add `label_options: {outside: ignore}` to each item of `data` and set `covers: true`."
    ]


def _header(survey: Survey, pairs: Sequence[Pair], labelled: Sequence[Pair]) -> str:
    lines = [
        "A plan by `maskbridge plan`, from what is in the data. Every value is yours to change.",
        "Go on with: maskbridge train THIS_FILE --out runs/" + survey.adapter.name,
    ]
    if len(pairs) > len(labelled):
        left = [Path(pair.scene).name for pair in pairs if pair.labels is None]
        lines.append(f"Left out, no labels found for: {', '.join(left[:10])}{' …' if len(left) > 10 else ''}")
    return "\n".join([*lines, *survey.census.warnings, *_why_so_little(survey)])


def _without_defaults(item: DataItem) -> dict[str, Any]:
    """Of a data item what a reader has to know."""
    plain, options = asdict(LabelOptions()), asdict(item.label_options)
    changed = {key: value for key, value in options.items() if value != plain[key]}
    shown = {"source": item.source, "labels": item.labels, "role": item.role if item.role != "auto" else None}
    return shown | ({"label_options": changed} if changed else {})


def _as_seen_from(path: str, folder: Path) -> str:
    """Relative where the file lies inside the config's folder, so that both can move together; else absolute."""
    absolute = Path(path).absolute()
    try:
        return str(absolute.resolve().relative_to(folder.resolve()))
    except ValueError:
        return str(absolute)
