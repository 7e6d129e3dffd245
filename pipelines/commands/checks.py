"""What can be known to be wrong before anything heavy is imported or begun. All raise InputError."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import InputError

if TYPE_CHECKING:
    from adapters.base import DomainAdapter
    from pipelines.config import PredictOptions, RunConfig


def readable_file(path: Path) -> None:
    """`path` is a file that can be opened."""
    try:
        with path.open("rb"):
            pass
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, expected a file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def writable_folder(path: Path) -> None:
    """A folder can be made at `path` and written to. Makes none itself.

    Proved by a temporary file in the nearest folder there is: permission bits say nothing of read-only
    mounts, and nothing to root.
    """
    place = path.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"{path}: {place} is a file, expected a folder to write to")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written to ({error.strerror or error})") from None


def model_adapter(reference: str) -> DomainAdapter:
    """The adapter of a bundle folder or registry reference; its weights' hash is checked on the way."""
    from pipelines.bundle import load_bundle

    return load_bundle(reference, check_shapes=False).adapter  # shapes would need torch


def scene_fits(path: str, adapter: DomainAdapter, options: PredictOptions) -> None:
    """The scene opens, has the bands the adapter declares, its first pixels can be read, and --aoi lies on it."""
    from pipelines.sources import open_for

    with open_for(path, adapter) as source:
        height, width = source.shape
        tile = options.tile or adapter.tile
        overlap = adapter.tile_overlap if options.overlap is None else options.overlap
        if overlap >= tile and max(height, width) > tile:
            raise InputError(f"{path}: --overlap {overlap} must be smaller than --tile {tile}")
        source.read((slice(0, min(height, 8)), slice(0, min(width, 8))))
        if options.aoi:
            from pipelines.aoi import restrict

            restrict(source, options.aoi)


def preset_exists(config: RunConfig, path: Path) -> None:
    """The config's preset and overrides are known; checked without torch."""
    from maskformer.config import ModelConfig

    try:
        ModelConfig.from_preset(config.model.preset, **config.model.overrides)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: model: {error}") from None


def data_fits(config: RunConfig) -> None:
    """Every scene opens with the adapter's channels, its labels fit it, and the split leaves parts. Volumes too."""
    from pipelines.labelled import LabelledData, load_adapter

    if load_adapter(config).volume is not None:
        from pipelines.volumes.prepared import check_cases

        check_cases(config)
        return
    with LabelledData(config) as data:
        _ = data.split
