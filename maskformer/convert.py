"""Published checkpoints in: transformers folders, detectron2 files, timm backbones.

    model = from_transformers("maskformer-swin-tiny-ade/")
    print(model.conversion.describe())      # what went where

Every tensor of the checkpoint and of the model is accounted for; one without a counterpart is a ValueError. Nothing of
these projects is imported, and no file can run code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from maskformer.config import ModelConfig
from maskformer.conversion import detectron2_config, names_detectron2, names_transformers
from maskformer.conversion.account import Conversion, Facts
from maskformer.conversion.fit import Changes
from maskformer.conversion.loading import Checkpoint, load
from maskformer.conversion.timm_backbone import load_backbone
from maskformer.conversion.transformers_config import model_config, model_type
from maskformer.conversion.transformers_facts import facts_of
from maskformer.conversion.transformers_folder import read_folder, read_model
from maskformer.conversion.weight_files import load_weights
from maskformer.model import MaskFormer

__all__ = ["Conversion", "Facts", "from_detectron2", "from_timm", "from_transformers"]

logger = logging.getLogger(__name__)


def from_transformers(
    model_or_folder: nn.Module | str | Path,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    num_queries: int | None = None,
    in_channels: int | None = None,
    rgb: Sequence[int] | None = None,
) -> MaskFormer:
    """A MaskFormer, Mask2Former or EoMT of transformers → the same model here, float32, eval mode.

    model_or_folder: a live model, or a folder with config.json and safetensors (one file, or shards with an index),
        as `save_pretrained` of transformers 4 or 5 writes it.
    num_classes, classes (names), num_queries, in_channels: other ones than the checkpoint's. What fits is kept, see
        `maskformer.conversion.fit`; rgb says which input channels are red, green and blue (default: the first three).

    `model.conversion` is the account. ValueError where a file is missing or broken, the model type or one of its
    settings is not supported, or a tensor has no counterpart.
    """
    changes = Changes(num_classes, classes, num_queries, in_channels, rgb)
    if isinstance(model_or_folder, nn.Module):
        saved, where = read_model(model_or_folder), type(model_or_folder).__name__
    else:
        saved, where = read_folder(Path(model_or_folder)), str(model_or_folder)
    with _understanding(where):
        kind, config = model_type(saved.config), model_config(saved.config)
        facts = facts_of(saved.config, saved.processor)
    checkpoint = Checkpoint(
        source=f"{where} (transformers, {kind})",
        config=config,
        weights=saved.weights,
        table=names_transformers.table_of(kind, config),
        left_over=names_transformers.LEFT_OVER,
        facts=facts,
    )
    return _announced(load(checkpoint, changes))


def from_detectron2(
    path: str | Path,
    *,
    num_heads: int | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    num_queries: int | None = None,
    in_channels: int | None = None,
    rgb: Sequence[int] | None = None,
) -> MaskFormer:
    """A published MaskFormer or Mask2Former file → the same model here, float32, eval mode.

    path: a `.pkl`, read by an unpickler that admits numpy arrays alone, or a `.pth`, read by
        `torch.load(weights_only=True)`.
    num_heads: attention heads where another number than the published 8 was trained; MaskFormer's shapes do not tell.
    The other changes are those of `from_transformers`.

    The architecture is read off names and shapes; class names are not in these files. `model.conversion` is the
    account. ValueError for a file that asks for code, is cut off, has a part that is not built here (R101c), or a
    tensor without a counterpart.
    """
    changes = Changes(num_classes, classes, num_queries, in_channels, rgb)
    weights = load_weights(Path(path))
    with _understanding(str(path)):
        parts = detectron2_config.parts_of(weights)
        config = detectron2_config.model_config(weights, parts, num_heads)
        facts = detectron2_config.facts_of(weights, config.num_classes)
    checkpoint = Checkpoint(
        source=f"{path} (detectron2, {' + '.join(parts)})",
        config=config,
        weights=weights,
        table=names_detectron2.table_of(*parts),
        left_over=names_detectron2.LEFT_OVER,
        facts=facts,
    )
    return _announced(load(checkpoint, changes))


def from_timm(
    name_or_weights: str | Path | Mapping[str, Tensor], config: ModelConfig, *, rgb: Sequence[int] | None = None
) -> MaskFormer:
    """ImageNet weights of timm in the backbone of a fresh model of `config`; eval mode.

    name_or_weights: a model of timm (its weights come from timm's hub), a `.safetensors` or `.pth` file with timm's
        names, or such tensors themselves. rgb: which input channels are red, green and blue (default: the first three).

    `model.conversion` is the account: everything but the backbone is fresh. ValueError where the hub cannot be reached
    or a tensor is neither the backbone's nor the rest of timm's network.
    """
    return _announced(load_backbone(name_or_weights, config, rgb))


@contextmanager
def _understanding(where: str) -> Iterator[None]:
    """ValueError with the place in front for whatever a damaged description runs into."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:  # values of other types than their names promise fail wherever they are used
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{where}: its settings or shapes make no sense: {reason}") from error


def _announced(model: MaskFormer) -> MaskFormer:
    logger.info("%s", model.conversion.describe())
    return model
