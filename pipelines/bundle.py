"""A trained model as a folder: `bundle.json` (what it is) and `weights.safetensors` (its tensors).

    bundle.json: format, format_version, model (ModelConfig), adapter (DomainAdapter), metrics, thresholds,
                 provenance, weights {file, sha256, bytes, tensors}, seal (hash of all this)

Beside them lies MODEL_CARD.md, the same for people; nothing reads it. No pickle is written or read. Equal input gives
equal bytes. Weights and description are checked against their hashes whenever a bundle is opened. A local folder needs
no server and no MLflow; `models:/name@alias` and `models:/name/3` go through `pipelines.registry`.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.base import DomainAdapter
from adapters.errors import InputError
from maskformer.config import ModelConfig
from pipelines.bundle_formats import FORMAT, FORMAT_VERSION, sealed, upgraded
from pipelines.model_card import CARD, model_card
from pipelines.provenance import provenance as code_provenance
from pipelines.sinks.folder import sha256 as file_digest

if TYPE_CHECKING:
    import torch
    from torch import nn

DESCRIPTION = "bundle.json"
WEIGHTS = "weights.safetensors"
REGISTRY = "models:/"
TEMPORARY = ".bundle-"


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `name` and `version` say how it was asked for (a folder has no version).

    `sha256` is the weights' hash; `digest` that of bundle.json, which holds `sha256` and so identifies model,
    adapter and thresholds together (what a cache has to key on).
    """

    config: ModelConfig
    adapter: DomainAdapter
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    thresholds: dict[str, float]
    folder: Path
    sha256: str
    digest: str
    name: str
    version: str | None = None

    def build(self, device: "str | torch.device" = "cpu") -> "nn.Module":
        """The model in eval mode with the bundle's weights; InputError where they do not fit the config."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from maskformer.model import build_model

        try:
            weights = load_file(self.folder / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.folder}: {WEIGHTS} cannot be read: {error}") from error
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten; the caller's state is not
            model = build_model(self.config)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        _check_shapes(self.folder, shapes, wanted)
        model.load_state_dict(weights)
        return model.to(device).eval()


def save_bundle(
    folder: str | Path,
    model: "nn.Module",
    adapter: DomainAdapter,
    *,
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Path:
    """Write `model` (its `.config` is the ModelConfig) and `adapter` as a bundle; return the folder.

    `provenance` (data digests, seed, minutes, ...) is joined by the versions and git revision of this code.
    Written beside and renamed: a bundle already there is replaced whole or, on any failure, stays. A folder
    that is something else is refused with InputError.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise ValueError(f"{type(model).__name__} has no ModelConfig in .config; build it with build_model")
    if folder.exists() and not (folder / DESCRIPTION).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not a bundle; choose another folder for the model")
    # Clones: safetensors refuses tensors that share memory (tied weights), and .contiguous() keeps sharing. It refuses
    # channels_last too, in which convolutions train faster.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as temporary:
            fresh = Path(temporary) / "bundle"
            fresh.mkdir()
            save_file(tensors, fresh / WEIGHTS)
            description = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "model": config.to_dict(),
                "adapter": adapter.to_dict(),
                "metrics": metrics or {},
                "thresholds": thresholds or {},
                "provenance": {**code_provenance(), **(provenance or {})},
                "weights": {
                    "file": WEIGHTS,
                    "sha256": file_digest(fresh / WEIGHTS),
                    "bytes": (fresh / WEIGHTS).stat().st_size,
                    "tensors": len(tensors),
                },
            }
            description = sealed(_plain(description))
            text = json.dumps(description, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
            (fresh / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
            (fresh / CARD).write_text(model_card(description), encoding="utf-8")
            shutil.copymode(fresh / DESCRIPTION, fresh / WEIGHTS)  # safetensors makes it private to the owner
            _swap(fresh, folder, Path(temporary) / "previous")
    except OSError as error:
        raise InputError(f"{folder}: cannot write the model here: {error.strerror or error}") from error
    return folder


def load_bundle(reference: str | Path, *, check_shapes: bool = True, name: str | None = None) -> Bundle:
    """Read a bundle folder, a run's folder (its `bundle/`), `models:/name@alias` or `models:/name/3`.

    Checks format version, the hashes of the description and the weights, config, adapter and (unless `check_shapes` is
    off, which spares the import of torch) every tensor's shape against the config. InputError names folder and fault.
    A bundle of an older format is read as what it would be today. `name` stands for the folder's own.
    """
    if str(reference).startswith(REGISTRY):
        from pipelines.registry import download_version, resolve

        registered = resolve(str(reference))
        return _read(download_version(registered), registered.name, registered.version, check_shapes)
    folder = Path(reference)
    if not (folder / DESCRIPTION).is_file() and (folder / "bundle" / DESCRIPTION).is_file():
        folder = folder / "bundle"
    return _read(folder, name or folder.resolve().name, None, check_shapes)


def is_bundle(path: str | Path) -> bool:
    """True where `path` is a folder that says it is a bundle; nothing is checked."""
    return (Path(path) / DESCRIPTION).is_file()


def _read(folder: Path, name: str, version: str | None, check_shapes: bool) -> Bundle:
    description = _description(folder)
    sha256 = _verified_weights(folder, description)
    try:
        config = ModelConfig.from_dict(description["model"])
        adapter = DomainAdapter.from_dict(description["adapter"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: {DESCRIPTION} does not describe a model and its adapter: {error}") from error
    _check_agreement(folder, config, adapter)
    if check_shapes:
        _check_shapes(folder, _stored_shapes(folder), _configured_shapes(config))
    return Bundle(
        config=config,
        adapter=adapter,
        metrics=description.get("metrics", {}),
        provenance=description.get("provenance", {}),
        thresholds=description.get("thresholds", {}),
        folder=folder,
        sha256=sha256,
        digest=file_digest(folder / DESCRIPTION),
        name=name,
        version=version,
    )


def _description(folder: Path) -> dict[str, Any]:
    """bundle.json as a dict of a format this version reads."""
    path = folder / DESCRIPTION
    if not path.is_file():
        missing = "no such folder" if not folder.exists() else f"no {DESCRIPTION} in it"
        raise InputError(
            f"{folder}: not a model ({missing}); expected a bundle folder, models:/name@alias or models:/name/3"
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: {DESCRIPTION} cannot be read: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f'{folder}: {DESCRIPTION} is not of a maskbridge bundle (no "format": "{FORMAT}")')
    return upgraded(folder, description)


def _verified_weights(folder: Path, description: dict[str, Any]) -> str:
    """Hash of the weights file, which must be the one bundle.json states."""
    path = folder / WEIGHTS  # never a path out of bundle.json
    if not path.is_file():
        raise InputError(f"{folder}: {WEIGHTS} is missing")
    weights = description.get("weights")
    stated = weights.get("sha256") if isinstance(weights, dict) else None
    actual = file_digest(path)
    if actual != stated:
        raise InputError(
            f"{folder}: {WEIGHTS} is damaged or of another bundle: its sha256 is {actual}, {DESCRIPTION} says {stated}"
        )
    return actual


def _check_agreement(folder: Path, config: ModelConfig, adapter: DomainAdapter) -> None:
    """The model must have one output a class and one input a channel of every slice the adapter gives it."""
    classes = len(adapter.classes)
    if config.num_classes != classes:
        raise InputError(f"{folder}: the model tells {config.num_classes} classes, its adapter has {classes}")
    inputs = len(adapter.channels) * (1 + 2 * adapter.context_slices)
    if config.in_channels != inputs:
        raise InputError(f"{folder}: the model takes {config.in_channels} channels, its adapter gives {inputs}")


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the weights file; reads its header only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder}: {WEIGHTS} cannot be read: {error}") from error


def _configured_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes the config asks for, without memory for the tensors."""
    import torch

    from maskformer.model import build_model

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}


def _check_shapes(folder: Path, stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """InputError that counts what differs between file and config and shows the first of each kind."""
    faults = []
    missing = [name for name in wanted if name not in stored]
    unknown = [name for name in stored if name not in wanted]
    other = [name for name in wanted if name in stored and stored[name] != wanted[name]]
    if missing:
        faults.append(f"{len(missing)} tensors missing (first: {missing[0]})")
    if unknown:
        faults.append(f"{len(unknown)} tensors the config does not know (first: {unknown[0]})")
    if other:
        name = other[0]
        faults.append(
            f"{len(other)} tensors of another shape "
            f"(first: {name} is {stored[name]}, the config asks for {wanted[name]})"
        )
    if faults:
        raise InputError(f"{folder}: the weights do not fit the model config: {'; '.join(faults)}")


def _swap(fresh: Path, folder: Path, previous: Path) -> None:
    """Put `fresh` in the place of `folder`; the old one comes back if that fails."""
    if folder.exists():
        folder.rename(previous)
    try:
        fresh.rename(folder)
    except OSError:
        if previous.exists():
            previous.rename(folder)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _plain(value: Any) -> Any:
    """JSON values: numpy scalars become numbers, paths strings, tuples lists, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None  # a class that does not occur has no IoU
    return value
