"""Checkpoints: one file that is either the old one or the new one, never half of either.

Tensors and plain values only, so that `torch.load(weights_only=True)` reads it: no code runs from a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapters.errors import InputError

FORMAT = 1
NAME = "checkpoint.pt"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` under a temporary name beside `path`, then rename. A kill at any moment leaves `path`
    whole. Raises InputError where the disk refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
        raise InputError(f"{path}: checkpoint could not be written ({_first_line(error)})") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to CPU memory. Raises InputError where it is missing, broken or of another format."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load itself does not look at the checksums
        if broken is not None:
            raise InputError(f"{path}: damaged checkpoint (checksum of {broken} differs)")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no checkpoint to resume from") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a checkpoint of maskbridge ({_first_line(error)})") from None
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: checkpoint format {found}, expected {FORMAT}")
    return state


def check_fingerprint(path: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to go on with another model, other data or other options. Raises InputError that names it."""
    for part in ("model", "data"):
        if stored[part] != current[part]:
            raise InputError(
                f"{path}: was made with another {part} "
                f"(fingerprint {stored[part][:12]}, now {current[part][:12]}); resume needs the same {part}"
            )
    before, now = stored["options"], current["options"]
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        listed = ", ".join(f"train.{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
        raise InputError(f"{path}: was made with other options ({listed}); resume needs the same ones")


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and types of all tensors and, where there is one, the model's config."""
    tensors = [(name, list(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    config = getattr(model, "config", None)
    described = config.to_dict() if config is not None and hasattr(config, "to_dict") else None
    return sha256_of({"class": type(model).__name__, "tensors": tensors, "config": described})


def sha256_of(value: Any) -> str:
    """Of the value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
