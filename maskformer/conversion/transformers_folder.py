"""A folder as transformers' `save_pretrained` writes it, or such a model in memory. transformers is never imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from maskformer.conversion.weight_files import load_weights

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SAFETENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"  # all that some older hub folders have


class Saved(NamedTuple):
    """config.json, the image processor's JSON ({} where there is none) and the tensors."""

    config: dict[str, Any]
    processor: dict[str, Any]
    weights: dict[str, Tensor]


def read_folder(folder: Path) -> Saved:
    """Read a folder; ValueError names what is missing or broken."""
    if not folder.exists():
        raise ValueError(f"{folder}: no such folder")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: not a folder of transformers: no {CONFIG} in it")
    processor = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    settings = _json(processor) if processor else {}
    settings = settings.get("image_processor", settings)  # where a processor has several parts
    return Saved(_json(folder / CONFIG), settings if isinstance(settings, dict) else {}, _weights(folder))


def read_model(model: nn.Module) -> Saved:
    """The same of a live model; ValueError where it is none of transformers."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        raise ValueError(f"{type(model).__name__} is no model of transformers: it has no config with to_dict()")
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    return Saved(config.to_dict(), {}, weights)  # type: ignore[union-attr]


def _weights(folder: Path) -> dict[str, Tensor]:
    if (folder / SAFETENSORS).is_file():
        return load_weights(folder / SAFETENSORS)
    if (folder / INDEX).is_file():
        return _sharded(folder)
    if (folder / PICKLED).is_file():
        return load_weights(folder / PICKLED)
    raise ValueError(f"{folder}: no weights in it: expected {SAFETENSORS}, {INDEX} or {PICKLED}")


def _sharded(folder: Path) -> dict[str, Tensor]:
    places = _json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{folder / INDEX}: no weight_map in it")
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(map(str, places.values()))):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX}: refused: {shard!r} is not a safetensors file of this folder")
        weights.update(load_weights(folder / shard))
    lost = [name for name in places if name not in weights]
    if lost:
        raise ValueError(f"{folder}: {len(lost)} tensors of {INDEX} are in none of its files (first: {lost[0]})")
    return weights


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected settings by name, found {type(value).__name__}")
    return value
