"""The one reader of weights: .safetensors, .pkl, and whatever torch.save wrote. No file can run code or claim more
memory than a small multiple of its own size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from maskformer.conversion.account import name_some
from maskformer.conversion.pickle_check import SLACK, UNFOLDED
from maskformer.conversion.restricted_pickle import load_pickle
from maskformer.conversion.torch_files import check_tensor, load_torch


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU. A pickle may hold them under "model", as detectron2's do.

    ValueError, which names the file: it is damaged, asks for code, claims more than it holds, or is something else.
    """
    if path.suffix == ".safetensors":
        return _safetensors(path)
    payload = load_pickle(path) if path.suffix == ".pkl" else load_torch(path)
    if isinstance(payload, Mapping) and isinstance(payload.get("model"), Mapping):
        payload = payload["model"]
    if not isinstance(payload, Mapping) or not payload:
        raise ValueError(f"{path}: not a checkpoint: expected tensors by name, found {type(payload).__name__}")
    weights = {}
    for name, value in payload.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: not a checkpoint: expected tensors by name, found a key {type(name).__name__}")
        weights[name] = _tensor(value, f"{path}: {name}")
    total, size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values()), path.stat().st_size
    if total > UNFOLDED * size + SLACK:  # names may share numbers, but not a checkpoint's worth of them
        raise ValueError(f"{path}: refused: its tensors claim {total} bytes, and the file has {size}")
    return weights


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """ValueError where numbers are NaN or infinite: such a checkpoint was saved after its training had failed."""
    broken = [name for name, tensor in weights.items() if not _is_finite(tensor)]
    if broken:
        raise ValueError(f"{source}: {len(broken)} tensors hold NaN or infinite values: {name_some(broken)}")


def _is_finite(tensor: Tensor) -> bool:
    # A sum is finite only where every term is, and reads once; it may overflow where none is broken.
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read, or cut off: {error}") from error


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        check_tensor(value, what)
        return value.detach()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.asarray(value, order="C"))
    raise ValueError(f"{what}: expected numbers, found {type(value).__name__}")
