"""One YAML a run: what the data is, which model, how long to train, how to predict, where to track.

The same models are the Prefect flows' parameters, so the form in the Prefect page and the file on disk are
one thing. Unknown keys are errors with a suggestion; relative paths are meant from the file's own folder.
"""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.errors import InputError
from pipelines.annotations.options import LabelOptions

SAMPLE = "sample:"  # `sample:NAME/MEMBER` names a file of a published sample package (pipelines.samples)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataItem(Strict):
    """One scene with its labels. `role` fixes its part; `auto` leaves it to `split`.

    `source` may be a pattern (`images/*.jpg`); then `{stem}` and `{folder}` in `labels` stand for each picture's name
    without suffix and for the folder it lies in. Volumes: a folder of cases or a table may stand for all of them, see
    `pipelines.volumes.cases`.
    """

    source: str
    labels: str | None = None
    label_options: LabelOptions = LabelOptions()
    role: Literal["auto", "train", "validation", "test"] = "auto"
    patient: str | None = Field(
        None,
        description="volumes: whose it is, `{stem}` and `{folder}` filled in; for a folder of cases a regular "
        "expression whose group is the patient's part of the case's name",
    )


class SplitOptions(Strict):
    """Split by place: one scene is cut along an axis, several scenes are dealt out whole. Volumes: by patient."""

    validation: float = Field(0.15, ge=0, lt=1)
    test: float = Field(0.25, ge=0, lt=1)
    axis: Literal["longest", "rows", "columns"] = "longest"
    gap: int = Field(0, ge=0, description="pixels left out between the parts of one scene")
    seed: int = 0
    folds: int | None = Field(None, ge=2, description="volumes: every patient is held out once, in so many trainings")
    fold: int | None = Field(None, ge=0, description="volumes: only this one of the folds")

    @model_validator(mode="after")
    def _leaves_something(self) -> SplitOptions:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1, or nothing is left to train on")
        if self.fold is not None and (self.folds is None or self.fold >= self.folds):
            raise ValueError("fold counts from 0 and needs `folds` above it")
        return self


class ModelOptions(Strict):
    """A preset of `maskformer.config.PRESETS`, changed by `overrides`; `weights` start the backbone.

    With `init_from` a trained model is carried over instead: its architecture (changed by `overrides`), and its weights
    as far as channels and classes go by the same names, see `pipelines.transfer`.
    """

    preset: str = "maskformer-resnet50"
    overrides: dict[str, Any] = {}
    weights: str | None = Field(
        None, description="`sample:efficientnet_lite0`, `timm` (its hub), a .safetensors file, or nothing"
    )
    init_from: str | None = Field(None, description="a trained model: bundle folder or `models:/name@alias`")
    class_map: dict[str, tuple[str, ...]] = Field(
        {}, description="with `init_from`: class here → classes of that model it is made of"
    )

    @model_validator(mode="after")
    def _one_start(self) -> ModelOptions:
        if self.init_from and (self.weights or "preset" in self.model_fields_set):
            raise ValueError("`init_from` brings architecture and weights: leave out `preset` and `weights`")
        if self.class_map and not self.init_from:
            raise ValueError("`class_map` goes with `init_from`")
        return self

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class TrainOptions(Strict):
    """Length is `minutes` of wall-clock or `steps`, not both; the schedule ends with it either way."""

    minutes: float | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)
    batch: int = Field(4, gt=0)
    accumulate: int = Field(1, gt=0, description="batches per optimiser step")
    crop: int = Field(384, gt=0, multiple_of=32, description="side of a training crop, pixels")
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    learning_rate: float = Field(1e-4, gt=0)
    backbone_multiplier: float = Field(0.1, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the run in which the rate rises")
    power: float = Field(0.9, gt=0, description="of the polynomial decay")
    clip: float | None = Field(0.1, gt=0, description="largest gradient norm")
    ema: float | None = Field(0.999, gt=0, lt=1, description="decay of the averaged weights; none turns it off")
    grad_checkpointing: bool = Field(False, description="recompute activations instead of keeping them: less memory")
    freeze: tuple[Literal["backbone", "pixel_decoder", "query_decoder"], ...] = Field(
        (), description="parts that stay as they are"
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="of the backbone's rate, for each of its stages nearer to the picture"
    )
    low_rank: int | None = Field(
        None, gt=0, description="rank of the change of the backbone's weights; needs the extra `low-rank`"
    )
    augment: tuple[str, ...] = ("flip", "rotate", "scale", "colour")
    workers: int = Field(1, ge=0)
    cache_mb: int = Field(4096, ge=0, description="volumes: memory for prepared cases; the rest lies in files")
    log_every: int = Field(5, gt=0, description="steps between rows of the history")
    checkpoint_minutes: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> TrainOptions:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give either `minutes` or `steps`")
        if self.low_rank and "backbone" in self.freeze:
            raise ValueError("`low_rank` trains the backbone: leave it out of `freeze`")
        return self


class PredictOptions(Strict):
    """How a scene is cut, predicted and put together. `None` takes the adapter's or the bundle's value."""

    tile: int | None = Field(None, gt=0, description="tile side, pixels")
    overlap: int | None = Field(None, ge=0, description="pixels neighbouring tiles share")
    task: Literal["semantic", "instance", "panoptic"] | None = Field(
        None, description="default: what the model was scored on, else by its classes"
    )
    score: float | None = Field(
        None, ge=0, le=1, description="objects below are left out; default: tuned in training, else 0.5"
    )
    mask: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="pixels above this mask probability are an object's; default: the model's, else 0.5",
    )
    keep: float | None = Field(
        None,
        ge=0,
        le=1,
        description="panoptic: share of its own mask that a segment has to win; default: the model's, else 0.8",
    )
    min_area: int = Field(4, ge=0, description="objects smaller than this many pixels are left out")
    tta: Literal["none", "flip"] = "none"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="tiles a forward pass; auto: by a short trial where a scene is large enough for one, else 1"
    )
    shard_tiles: int = Field(16, gt=0, description="tiles a shard has at least; whole tile rows")
    aoi: str | None = Field(None, description="polygons; results are clipped to them")


class ScoringOptions(Strict):
    """How volumes are scored."""

    tolerance_mm: float = Field(2.0, gt=0, description="of the surface Dice")
    samples: int = Field(1000, gt=0, description="of the bootstrap over patients")


class WriteOptions(Strict):
    """What a scene's folder holds besides semantic.tif, objects.gpkg, objects.parquet, report.html and run.json."""

    flatgeobuf: bool = Field(False, description="objects.fgb too")
    layers: bool = Field(False, description="layers.tif: every object whole, as non-overlapping label rasters")
    confidence: bool = Field(False, description="confidence.tif: probability of the best class")
    stac: bool = Field(False, description="item.json: a STAC item")
    simplify_m: float | None = Field(None, gt=0, description="outlines may leave the pixel edges by so many metres")
    regularise_m: float | None = Field(None, gt=0, description="likewise, with right angles; for buildings")


class TrackingOptions(Strict):
    uri: str | None = Field(None, description="MLflow; default MLFLOW_TRACKING_URI, else ./mlflow.db")
    experiment: str = "maskbridge"
    register_as: str | None = Field(None, description="name in the model registry")
    alias: str | None = "challenger"


class BaselineOptions(Strict):
    """The per-pixel network trained beside the model: same data, crops, augmentation and length."""

    preset: str = "unet-efficientnet-lite0"
    overrides: dict[str, Any] = {}
    learning_rate: float = Field(1e-3, gt=0)
    backbone_multiplier: float = Field(1.0, ge=0)
    steps: int | None = Field(None, gt=0, description="where the model's length is in steps; default as many")


class RunConfig(Strict):
    """Everything a run needs. `adapter` is `DomainAdapter.to_dict()` inline, or a JSON file's path."""

    name: str = "run"
    adapter: dict[str, Any] | str
    data: tuple[DataItem, ...] = Field(min_length=1)
    split: SplitOptions = SplitOptions()
    model: ModelOptions = ModelOptions()
    train: TrainOptions = TrainOptions(minutes=10)
    baseline: BaselineOptions | None = Field(None, description="null: no baseline beside the model")
    predict: PredictOptions = PredictOptions()
    scoring: ScoringOptions = ScoringOptions()
    tracking: TrackingOptions = TrackingOptions()


def load_config(path: str | Path) -> RunConfig:
    """Read and check a run config. Raises InputError: one line that names the file, the key and the fault."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected `key: value` lines, as `maskbridge plan` writes them")
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, RunConfig)}") from None
    return _paths_from(config, path.resolve().parent)


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write `config` so that `load_config` gives it back."""
    values = config.model_dump(mode="json", exclude_defaults=True)  # keeps a null that switches something off
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for all faults pydantic found, each with its key and, for a typo, the nearest known key."""
    items = [dict(item) for item in error.errors()]
    # A list whose items are wrong is also "too short": only the items' own faults help.
    telling = [item for item in items if item["type"] != "too_short"] or items
    return "; ".join(_explain_one(item, model) for item in telling)


def _explain_one(item: dict[str, Any], model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(model, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key `{where}`; {hint}"
    if item["type"] == "missing":
        return f"`{where}` is missing"
    got = "" if isinstance(item.get("input"), (dict, list)) else f", got {item.get('input')!r}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"`{where}`: {message}{got}" if where else message


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the nested model that `loc` leads to."""
    for part in loc:
        if isinstance(part, str) and part in _fields_of(model):
            nested: Any = next(_models_in(_fields_of(model)[part].annotation), None)
            if nested is None:
                return []
            model = nested
    return list(_fields_of(model))


def _fields_of(model: Any) -> dict[str, Any]:
    """Fields of a pydantic model or of a dataclass that pydantic reads, with what has their type."""
    return getattr(model, "model_fields", None) or model.__dataclass_fields__


def _models_in(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _paths_from(config: RunConfig, folder: Path) -> RunConfig:
    """Make relative paths absolute, as seen from the config's folder."""

    def absolute(path: str | None) -> str | None:
        if path is None or path.startswith((SAMPLE, "{folder}")) or "://" in path or path.startswith("/vsi"):
            return path
        return str(folder / path)

    items = [
        item.model_copy(update={"source": absolute(item.source), "labels": absolute(item.labels)})
        for item in config.data
    ]
    # Names of volumes are names of patients: a pattern says less, and stays one (see `pipelines.volumes.cases`).
    of_volumes = isinstance(config.adapter, dict) and config.adapter.get("volume") is not None
    data = tuple(items if of_volumes else (scene for item in items for scene in _scenes_of(item)))
    weights = config.model.weights
    if weights not in (None, "timm"):
        weights = absolute(weights)
    started = config.model.init_from
    started = started if started is None or started.startswith("models:") else absolute(started)
    adapter = absolute(config.adapter) if isinstance(config.adapter, str) else config.adapter
    return config.model_copy(
        update={
            "data": data,
            "model": config.model.model_copy(update={"weights": weights, "init_from": started}),
            "adapter": adapter,
            "predict": config.predict.model_copy(update={"aoi": absolute(config.predict.aoi)}),
        }
    )


def _scenes_of(item: DataItem) -> Iterator[DataItem]:
    """The item, or where its source is a pattern, one item a file. Raises InputError where nothing fits."""
    if not glob.has_magic(item.source) or "://" in item.source or Path(item.source).exists():
        yield item
        return
    pattern = Path(item.source).absolute()
    found = sorted(str(file) for file in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    if not found:
        raise InputError(f"{item.source}: no file fits this pattern")
    for source in found:
        labels = item.labels
        if labels is not None:
            labels = _labels_of(Path(source), labels)
        yield item.model_copy(update={"source": source, "labels": labels})


def _labels_of(source: Path, pattern: str) -> str:
    """The label file of one picture, by the placeholders of `DataItem`."""
    named = pattern.replace("{folder}", str(source.parent)).replace("{parent}", source.parent.name)
    return re.sub(r"\{stem(?:-([^}]*))?\}", lambda found: source.stem.removesuffix(found[1] or ""), named)
