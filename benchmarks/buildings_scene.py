"""The buildings scene at 30 cm for trials of adaptation: west to learn from, east held out, either under a shift."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapters.base import DomainAdapter
from adapters.remote_sensing import fit_channels
from benchmarks.record import ROOT, config_hash
from benchmarks.shifts import Shift, same
from pipelines.bundle import load_bundle
from pipelines.config import DataItem, RunConfig, load_config
from pipelines.experiments import train
from pipelines.labelled import load_adapter
from pipelines.sources import open_for

DATA = ROOT.parent / "shared" / "data" / "satellite" / "buildings"
CONFIG = Path(__file__).with_name("adaptation.yaml")
COARSER = 4  # 7.5 cm become 30
SPLIT = 2 / 3  # of the columns: west of it is learned from
NONE = Shift("none", same)


@dataclass(frozen=True)
class Case:
    """A source model, the labelled data it has learned from, and a target: its address, and labelled data of its kind.

    `labelled` has a part to learn from, for the upper bound, and a held-out part, which is the target itself.
    """

    name: str
    source: Path
    learned_from: RunConfig
    target: str
    labelled: RunConfig

    @property
    def held_out(self) -> RunConfig:
        """The target with its labels, alone."""
        items = tuple(item for item in self.labelled.data if item.role == "test")
        return self.labelled.model_copy(update={"data": items}) if items else self.labelled


def work_folder() -> Path:
    """Where trained models lie between trials: `MASKBRIDGE_BENCH_CACHE`, else a folder for temporary files."""
    root = Path(os.environ.get("MASKBRIDGE_BENCH_CACHE") or tempfile.gettempdir())
    folder = root / f"maskbridge-adaptation-{config_hash(CONFIG)[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def part(shift: Shift, side: str, folder: Path) -> Path:
    """GeoTIFF of the `west` or `east` of the shifted scene; made once."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.windows import Window

    path = folder / "scenes" / f"{side}-{shift.name.replace(', ', '-').replace(' ', '-')}.tif"
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(DATA / "scene.tif") as scene:
        shape = (scene.height // COARSER, scene.width // COARSER)
        pixels = scene.read(out_shape=(3, *shape), resampling=Resampling.average)
        transform, crs = scene.transform @ scene.transform.scale(COARSER, COARSER), scene.crs
    edge = int(shape[1] * SPLIT) // 12 * 12  # whole pixels at any of the coarser sizes
    columns = slice(0, edge) if side == "west" else slice(edge, None)
    changed = shift(np.ascontiguousarray(pixels[:, :, columns]))
    transform = rasterio.windows.transform(Window(columns.start or 0, 0, 1, 1), transform)
    transform = transform @ transform.scale(shift.coarser, shift.coarser)
    profile = {"count": 3, "height": changed.shape[1], "width": changed.shape[2], "dtype": "uint8"}
    with rasterio.open(path, "w", "GTiff", crs=crs, transform=transform, photometric="RGB", **profile) as sink:
        sink.write(changed)
    return path


def config_of(shift: Shift, folder: Path) -> RunConfig:
    """Labelled data under a shift: the west to learn from (its last part to tune on), the east held out."""
    labels = str(DATA / "buildings.geojson")
    items = (
        DataItem(source=str(part(shift, "west", folder)), labels=labels),
        DataItem(source=str(part(shift, "east", folder)), labels=labels, role="test"),
    )
    return load_config(CONFIG).model_copy(update={"data": items})


def source_model(folder: Path) -> Path:
    """The model trained on the unshifted west; trained once."""
    bundle = folder / "source" / "bundle"
    if not bundle.exists():
        config = config_of(NONE, folder)
        train(_scaled(config, load_adapter(config)), folder / "source")
    return bundle


def case_of(shift: Shift, folder: Path) -> Case:
    source = source_model(folder)
    learned_from = config_of(NONE, folder).model_copy(update={"adapter": load_bundle(source).adapter.to_dict()})
    return Case(
        shift.name,
        source,
        learned_from,
        str(part(shift, "east", folder)),
        config_of(shift, folder),
    )


def supervised(case: Case, folder: Path, steps: int) -> Path:
    """The upper bound: the source model trained on, on labelled data of the target domain; trained once."""
    out = folder / f"supervised-{case.name.replace(', ', '-').replace(' ', '-')}"
    if not (out / "bundle").exists():
        config = _scaled(case.labelled, load_bundle(case.source).adapter)
        changes = {
            "model": config.model.model_copy(update={"init_from": str(case.source), "weights": None, "overrides": {}}),
            "train": config.train.model_copy(update={"steps": steps, "learning_rate": 5e-4}),
        }
        train(config.model_copy(update=changes), out)
    return out / "bundle"


def _scaled(config: RunConfig, adapter: DomainAdapter) -> RunConfig:
    """The config with the adapter scaled by what is learned from."""
    learned = [item.source for item in config.data if item.role != "test"]
    with ExitStack() as stack:
        fitted = fit_channels([stack.enter_context(open_for(one, adapter)) for one in learned], adapter.channels)
    return config.model_copy(update={"adapter": adapter.with_channels(fitted).to_dict()})
