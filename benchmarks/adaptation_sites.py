"""Adaptation without labels across real shifts: another sensor, another site. Strategies as in `adaptation`.

Buildings: aerial colour at 30 cm to one panchromatic satellite band at 50 cm (SpaceNet). Crowns: an airborne picture of
Yellowstone to one of Florida (NEON). Both are small and hard; the table says what there is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import transfer
from benchmarks.adaptation import table, trials
from benchmarks.buildings_scene import CONFIG, DATA, Case, config_of, source_model, work_folder
from benchmarks.record import write_result
from benchmarks.shifts import Shift, same
from pipelines.bundle import load_bundle
from pipelines.config import DataItem, RunConfig, SplitOptions, load_config
from pipelines.labelled import resolve

CROWNS = DATA.parent / "crowns"
TARGET_SHARE = 0.4  # of the columns, the eastern end: adapted to and scored on; the upper bound learns from the rest


def main() -> None:
    if not DATA.exists():
        print(f"adaptation_sites: skipped, there is no {DATA}")
        return
    folder = work_folder()
    done_file = folder / "sites.json"
    done: dict[str, Any] = json.loads(done_file.read_text()) if done_file.exists() else {}
    for case in (panchromatic(folder), florida(folder)):
        rows = done.setdefault(case.name, {})
        for name, row in trials(case, folder, rows):
            rows[name] = row
            done_file.write_text(json.dumps(done, indent=1))
            print(case.name, name, {key: row[key] for key in row if key != "notes"}, flush=True)
    print("\n".join(table(done)))
    print(write_result("adaptation_sites", CONFIG, {"shifts": done, "table": table(done)}))


def panchromatic(folder: Path) -> Case:
    source = source_model(folder)
    learned_from = config_of(Shift("none", same), folder)
    learned_from = learned_from.model_copy(update={"adapter": load_bundle(source).adapter.to_dict()})
    scene = resolve("sample:buildings/sample_geotiff.tif")
    item = DataItem(
        source=str(bands(scene, folder / "scenes" / "panchromatic.tif")),
        labels=str(resolve("sample:buildings/geotiff_labels.geojson")),
    )
    return _case("aerial to panchromatic", source, learned_from, item, folder)


def florida(folder: Path) -> Case:
    """From the crowns model that `transfer` trains from ImageNet weights."""
    config = load_config(transfer.CONFIG)
    source = folder / "transfer" / "ImageNet-weights-0" / "bundle"
    if not source.exists():
        transfer.run("ImageNet weights", 0, source_model(folder), folder)
    item = DataItem(
        source=str(CROWNS / "OSBS_029.tif"),
        labels=str(CROWNS / "OSBS_029.csv"),
        label_options=config.data[0].label_options,
    )
    return _case("crowns, Yellowstone to Florida", source, config, item, folder)


def _case(name: str, source: Path, learned_from: RunConfig, item: DataItem, folder: Path) -> Case:
    labelled = learned_from.model_copy(
        update={
            "data": (item,),
            "split": SplitOptions(validation=0.15, test=TARGET_SHARE, axis="columns"),
            "baseline": None,
            "train": learned_from.train.model_copy(update={"minutes": None, "steps": 1}),  # `supervised` sets them
        }
    )
    return Case(name, source, learned_from, str(end(Path(item.source), folder)), labelled)


def bands(path: Path, out: Path) -> Path:
    """The one band of `path` three times, for a model of colours."""
    import rasterio

    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path) as scene:
            profile = {**scene.profile, "driver": "GTiff", "count": 3}
            pixels = scene.read(1)
        with rasterio.open(out, "w", **profile) as sink:
            sink.write(np.stack([pixels] * 3))
    return out


def end(path: Path, folder: Path) -> Path:
    """The eastern end of a scene as a file of its own: the target's pixels, without a label."""
    import rasterio
    from rasterio.windows import Window

    out = folder / "scenes" / f"end-{path.stem}.tif"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path) as scene:
            start = round((1 - TARGET_SHARE) * scene.width)
            window = Window(start, 0, scene.width - start, scene.height)
            pixels = scene.read(window=window)
            profile = {"count": scene.count, "height": scene.height, "width": scene.width - start}
            profile |= {"dtype": scene.dtypes[0], "crs": scene.crs, "transform": scene.window_transform(window)}
        with rasterio.open(out, "w", "GTiff", **profile) as sink:
            sink.write(pixels)
    return out


if __name__ == "__main__":
    main()
