"""Checkpoints as pickles, read without running what a pickle may ask for.

A pickle is a program that may call anything importable. Published detectron2 checkpoints need dictionaries, strings,
numbers and numpy arrays; this reader knows how to make those and refuses everything else by name.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _bytes_of(text: str, encoding: str) -> bytes:
    """Bytes as protocols 0 to 2 write them: latin-1 text. Stands in for `_codecs.encode`, which knows more codecs."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


def _array_of(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """An array as protocol 5 writes it: its bytes, beside what they mean."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes_of,
}
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
    _ADMITTED[f"{_core}.multiarray", "scalar"] = np.float32(0).__reduce__()[0]
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _array_of


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def load_pickle(path: Path) -> Any:
    """What a pickle of plain values and numpy arrays holds. ValueError names what else it asks for, or how it broke."""
    try:
        with path.open("rb") as file:
            return _Reader(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused: {error}; a checkpoint needs numpy arrays and nothing else") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # a broken pickle fails in whatever its bytes happen to call
        raise ValueError(f"{path}: not a pickle, or cut off: {type(error).__name__}: {error}") from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from a detectron2 checkpoint: `.pkl` as above, any other through `torch.load(weights_only)`.

    Both may hold the tensors under "model". ValueError where the file is neither, or holds something else.
    """
    payload = load_pickle(path) if path.suffix == ".pkl" else _load_torch(path)
    if isinstance(payload, Mapping) and isinstance(payload.get("model"), Mapping):
        payload = payload["model"]
    if not isinstance(payload, Mapping) or not payload:
        raise ValueError(f"{path}: not a checkpoint: expected tensors by name, found {type(payload).__name__}")
    return {str(name): _tensor(value, f"{path}: {name}") for name, value in payload.items()}


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        unsafe = reason[reason.find("Unsupported") :].split(" by default")[0] if "Unsupported" in reason else ""
        raise ValueError(f"{path}: refused: {unsafe or 'it is not a checkpoint of tensors alone'}") from error
    except FileNotFoundError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a checkpoint, or cut off: {reason}") from error


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value, order="C"))  # a copy: arrays of a pickle may be read-only
    raise ValueError(f"{what}: expected numbers, found {type(value).__name__}")
