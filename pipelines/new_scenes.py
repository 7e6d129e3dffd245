"""Which scenes of a folder or a STAC catalogue are new: present, settled, and without a record in the output folder.

A record, `OUT/.scenes/<hash of the address>.json`, is written when a scene's folder is complete. It names the file by
size and time, the model and the options: another model, other options or a changed file make a scene new again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from adapters.errors import InputError
from pipelines.config import PredictOptions, Strict, WriteOptions
from pipelines.sinks.folder import atomic_write

log = logging.getLogger(__name__)

RECORDS = ".scenes"
RASTER_MEDIA = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff", "image/png", "image/jpeg")


class SceneSearch(Strict):
    """Where scenes are looked for: files of a folder by a pattern, or the assets of a STAC catalogue's items."""

    pattern: str = Field("*.tif", description="files of a folder; **/*.tif looks in its folders too")
    asset: str | None = Field(None, description="STAC: the asset's name; default: the one with role `data`")
    settled_s: float = Field(60.0, ge=0, description="a file that changed so lately is left for the next time")
    most: int = Field(1000, gt=0, description="scenes of one run; what is left is done by the next")

    @field_validator("pattern")
    @classmethod
    def _inside(cls, pattern: str) -> str:
        if ".." in Path(pattern).parts or Path(pattern).is_absolute():
            raise ValueError("a pattern of files inside the folder")
        return pattern


@dataclass(frozen=True)
class Found:
    """A scene that is there: its address, and its size and time where it is a local file."""

    address: str
    stat: tuple[int, int] | None


def find_scenes(place: str | Path, search: SceneSearch) -> list[Found]:
    """Every scene of `place`, sorted: a folder, or a STAC catalogue, collection or item (a local JSON file).

    InputError where it is neither.
    """
    path = Path(place)
    if path.is_dir():
        files = [str(file) for file in path.glob(search.pattern) if _is_shown(file, path)]
    elif path.is_file() and path.suffix.lower() in {".json", ".geojson"}:
        files = list(_stac_assets(path, search.asset))
    elif path.exists():
        raise InputError(f"{place}: expected a folder of scenes or a STAC catalogue (.json)")
    else:
        raise InputError(f"{place}: no such folder or catalogue")
    found = []
    for file in sorted(set(files)):
        stat = _stat(file)
        if stat is None and "://" not in file and not file.startswith("/vsi"):
            log.warning("%s: %s names it, but it is not there", file, place)
        elif stat is not None and time.time() - stat[1] / 1e9 < search.settled_s:
            log.info("%s: changed a moment ago, left for the next time", file)
        else:
            found.append(Found(file, stat))
    return found


def is_done(scene: Found, out: str | Path, key: str) -> bool:
    """Whether this very file was predicted with this key and its folder is still there."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(_record(scene, out).read_text())
        stat = None if record["stat"] is None else tuple(record["stat"])
        return bool(
            record["key"] == key and stat == scene.stat and (Path(out) / record["folder"] / "run.json").exists()
        )
    return False


def note_done(scene: Found, out: str | Path, key: str, folder: Path) -> None:
    """Write the scene's record."""
    record = {"scene": scene.address, "stat": scene.stat, "key": key, "folder": folder.name}
    with atomic_write(_record(scene, out)) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def prediction_key(model_digest: str, options: PredictOptions, write: WriteOptions) -> str:
    """Hash of what a scene's files depend on beside the scene."""
    parts = [model_digest, options.model_dump(mode="json"), write.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def without_the_done(scenes: Sequence[Found], out: str | Path, key: str, most: int) -> list[Found]:
    """The new ones, at most so many."""
    return [scene for scene in scenes if not is_done(scene, out, key)][:most]


def _record(scene: Found, out: str | Path) -> Path:
    return Path(out) / RECORDS / f"{hashlib.sha256(scene.address.encode()).hexdigest()[:32]}.json"


def _is_shown(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _stat(file: str) -> tuple[int, int] | None:
    with suppress(OSError):
        stat = Path(file).stat()
        return stat.st_size, stat.st_mtime_ns
    return None


def _stac_assets(path: Path, name: str | None) -> Iterator[str]:
    """The address of one asset of every item; local ones as absolute paths."""
    import pystac

    try:
        root: Any = pystac.read_file(str(path.resolve()))
        items = [root] if isinstance(root, pystac.Item) else root.get_items(recursive=True)
        for item in items:
            asset = _asset(item, name)
            if asset is None:
                log.warning("%s: %s has no asset to predict", path, item.id)
            else:
                href = asset.get_absolute_href()
                if href:
                    yield href.removeprefix("file://")
    except (pystac.STACError, pystac.STACTypeError, ValueError, KeyError, OSError, AttributeError) as error:
        raise InputError(f"{path}: not a STAC catalogue that can be read ({' '.join(str(error).split())})") from None


def _asset(item: Any, name: str | None) -> Any:
    """The named asset; else the first raster of role `data`; else the only raster."""
    if name is not None:
        return item.assets.get(name)
    rasters = [one for one in item.assets.values() if (one.media_type or "").split(";")[0] in RASTER_MEDIA]
    data = [one for one in rasters if "data" in (one.roles or ())]
    return data[0] if data else rasters[0] if len(rasters) == 1 else None
