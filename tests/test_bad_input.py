"""Bad input through the installed command: one line that names the file, exit code 2, nothing changed on disk.

The whole folder a case works in (inputs, earlier output, temporary files) is hashed before and after.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet

SIDE = 96
TIMEOUT_S = 600  # an import of torch takes 5 s; on a machine with ten such processes at once it took 100
CRS, ORIGIN = "EPSG:32617", (400000.0, 3280000.0)  # UTM 17 north, 1 m a pixel
ADAPTER = DomainAdapter(
    "test",
    ChannelSet(tuple(Channel(name, scale=255.0) for name in ("red", "green", "blue", "nir"))),
    ClassSet((Class("tree", values=(1,)), Class("house", values=(2,)))),
    tile=64,
    tile_overlap=16,
)


@dataclass(frozen=True)
class Case:
    """What is wrong, the command that meets it, and what its one line must say.

    prepare: makes the bad input in the case's folder and returns the words of the command. says: all of these stand in
    the line; the first is the file at fault.
    """

    name: str
    prepare: Callable[[Place], list[str]]
    says: tuple[str, ...]


@dataclass
class Place:
    """A folder with a good scene, labels, a config and a model, of which a case spoils one."""

    folder: Path
    bundle: Path
    made: list[Path] = field(default_factory=list)

    @property
    def scene(self) -> Path:
        return self.folder / "scene.tif"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def predict(self, *words: str | Path, scene: Path | None = None, out: Path | None = None) -> list[str]:
        return ["predict", str(self.bundle), str(scene or self.scene), "--out", str(out or self.out), *map(str, words)]

    def labels(self, features: list[dict], name: str = "labels.geojson") -> Path:
        path = self.folder / name
        crs = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:{CRS.replace(':', '::')}"}}
        path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
        return path

    def train(self, labels: Path, **label_options: str) -> list[str]:
        config = self.config(labels, **label_options)
        return ["train", str(config), "--out", str(self.out)]

    def config(self, labels: Path, **label_options: str) -> Path:
        path = self.folder / "config.yaml"
        item = {"source": "scene.tif", "labels": labels.name, "label_options": label_options}
        settings = {"adapter": ADAPTER.to_dict(), "data": [item], "train": {"steps": 1, "crop": 64}}
        path.write_text(yaml.safe_dump(settings))
        return path


def square(x: float, y: float, side: float = 10, **properties: object) -> dict:
    """A GeoJSON feature `x`, `y` metres right of and below the scene's corner."""
    left, top = ORIGIN[0] + x, ORIGIN[1] - y
    ring = [[left, top], [left + side, top], [left + side, top - side], [left, top - side], [left, top]]
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}


def write_scene(path: Path, bands: int = 4, crs: str | None = CRS, shape: tuple[int, int] = (SIDE, SIDE)) -> Path:
    import rasterio
    from rasterio.transform import from_origin

    pixels = np.random.default_rng(0).integers(0, 255, (bands, *shape), np.uint8)
    profile = {"driver": "GTiff", "count": bands, "height": shape[0], "width": shape[1], "dtype": "uint8"}
    profile["photometric"] = "minisblack"  # else GDAL takes the fourth band for alpha
    if crs:
        profile |= {"crs": crs, "transform": from_origin(*ORIGIN, 1, 1)}
    with rasterio.open(path, "w", **profile) as sink:
        sink.write(pixels)
        sink.descriptions = ("red", "green", "blue", "nir")[:bands]
    return path


def spoiled(name: str, content: bytes | str) -> Callable[[Place], list[str]]:
    """Predict on a file `name` that holds `content`."""

    def prepare(place: Place) -> list[str]:
        path = place.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return place.predict(scene=path)

    return prepare


def lost_directory(place: Place) -> list[str]:
    """Half of a file whose directory stands at its end, as in one written band by band."""
    cut = place.folder / "cut.tif"
    whole = place.scene.read_bytes()
    assert int.from_bytes(whole[4:8], "little") > len(whole) // 2  # where the directory begins
    cut.write_bytes(whole[: len(whole) // 2])
    return place.predict(scene=cut)


def truncated(place: Place) -> list[str]:
    """Half of a file whose directory stands at its beginning: it opens, and its pixels are missing."""
    import rasterio.shutil

    whole, cut = place.folder / "whole.tif", place.folder / "cut.tif"
    rasterio.shutil.copy(place.scene, whole, driver="COG")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return place.predict(scene=cut)


def alpha_alone(place: Place) -> list[str]:
    """A mask saved as a picture: its only band is transparency, so there is nothing to look at."""
    import rasterio
    from rasterio.enums import ColorInterp

    path = write_scene(place.folder / "alpha.tif", bands=1)
    with rasterio.open(path, "r+") as picture:
        picture.colorinterp = [ColorInterp.alpha]
    return place.predict(scene=path)


def three_bands(place: Place) -> list[str]:
    return place.predict(scene=write_scene(place.folder / "rgb.tif", bands=3))


def file_in_the_way(place: Place) -> list[str]:
    taken = place.folder / "taken"
    taken.write_text("somebody's notes")
    return place.predict(out=taken)


def damaged_model(place: Place) -> list[str]:
    import shutil

    broken = place.folder / "broken"
    shutil.copytree(place.bundle, broken)
    weights = broken / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return ["predict", str(broken), str(place.scene), "--out", str(place.out)]


def area_elsewhere(place: Place) -> list[str]:
    return place.predict("--aoi", place.labels([square(5000, 5000)], "aoi.geojson"))


def typo(place: Place) -> list[str]:
    config = place.config(place.labels([square(10, 10, kind="tree")]), class_column="kind")
    config.write_text(config.read_text().replace("crop:", "corp:"))
    return ["train", str(config), "--out", str(place.out)]


def preset_typo(place: Place) -> list[str]:
    config = place.config(place.labels([square(10, 10, kind="tree")]), class_column="kind")
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**settings, "model": {"preset": "maskformer-resnet5"}}))
    return ["train", str(config), "--out", str(place.out)]


def no_yaml(place: Place) -> list[str]:
    path = place.folder / "config.yaml"
    path.write_text("data: [unclosed")
    return ["train", str(path), "--out", str(place.out)]


def labels_elsewhere(place: Place) -> list[str]:
    return place.train(place.labels([square(5000, 5000, kind="tree")]), class_column="kind")


def unknown_class(place: Place) -> list[str]:
    features = [square(10, 10, kind="tree"), *(square(30 + 15 * i, 30, kind="palm") for i in range(3))]
    return place.train(place.labels(features), class_column="kind")


def not_a_number(place: Place) -> list[str]:
    feature = square(10, 10, kind="tree")
    feature["geometry"]["coordinates"][0][2][0] = float("nan")
    return place.train(place.labels([feature]), class_column="kind")


def no_labels_file(place: Place) -> list[str]:
    return place.train(place.folder / "nowhere.geojson")


def unlabelled(place: Place) -> list[str]:
    return ["plan", str(place.scene), "--out", str(place.folder / "plan.yaml")]


def plan_in_the_way(place: Place) -> list[str]:
    there = place.folder / "plan.yaml"
    there.write_text("# mine")
    labels = place.labels([square(10 * i, 10, kind="tree") for i in range(8)])
    return ["plan", str(place.scene), "--labels", str(labels), "--out", str(there)]


NO_BANDS = '<VRTDataset rasterXSize="8" rasterYSize="8"></VRTDataset>'
NO_PIXELS = '<VRTDataset rasterXSize="0" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'

CASES = (
    Case("not a raster", spoiled("notes.tif", "Dear diary, " * 50), ("notes.tif", "not a raster")),
    Case("empty file", spoiled("empty.tif", b""), ("empty.tif", "empty")),
    Case("GeoTIFF cut before its directory", lost_directory, ("cut.tif", "not a raster")),
    Case("truncated GeoTIFF", truncated, ("cut.tif", "truncated")),
    Case("no bands", alpha_alone, ("alpha.tif", "no bands")),
    Case("a raster that is nothing", spoiled("bands.vrt", NO_BANDS), ("bands.vrt", "not a raster")),
    Case("no pixels", spoiled("pixels.vrt", NO_PIXELS), ("pixels.vrt",)),
    Case("a band is missing", three_bands, ("rgb.tif", "nir", "red, green, blue")),
    Case("no such scene", lambda p: p.predict(scene=p.folder / "gone.tif"), ("gone.tif", "no such file")),
    Case("a file where the output goes", file_in_the_way, ("taken", "is a file")),
    Case(
        "a place nobody can write to",
        lambda p: p.predict(out=Path("/proc/self/out")),
        ("/proc/self/out", "cannot be written to"),
    ),
    Case(
        "no such model",
        lambda p: ["predict", str(p.folder / "nomodel"), str(p.scene), "--out", str(p.out)],
        ("nomodel", "not a model"),
    ),
    Case(
        "no such registered model",
        lambda p: ["predict", "models:/nobody@champion", str(p.scene), "--out", str(p.out)],
        ("models:/nobody@champion", "no models are registered"),
    ),
    Case("a damaged model", damaged_model, ("broken", "damaged")),
    Case(
        "overlap as large as the tile", lambda p: p.predict("--tile", 64, "--overlap", 64), ("scene.tif", "--overlap")
    ),
    Case("an area of interest elsewhere", area_elsewhere, ("aoi.geojson", "outside")),
    Case("a typo in the config", typo, ("config.yaml", "train.corp", "did you mean `crop`?")),
    Case("a typo in the preset", preset_typo, ("config.yaml", "did you mean 'maskformer-resnet50'?")),
    Case("no YAML", no_yaml, ("config.yaml", "not a YAML file")),
    Case("labels that miss the scene", labels_elsewhere, ("labels.geojson",)),
    Case("an unknown class", unknown_class, ("labels.geojson", "palm", "3")),
    Case("a polygon with NaN", not_a_number, ("labels.geojson", "NaN")),
    Case("no such labels", no_labels_file, ("nowhere.geojson", "no such file")),
    Case("nothing is labelled", unlabelled, ("scene.tif", "maskbridge predict")),
    Case("a plan is there already", plan_in_the_way, ("plan.yaml", "--overwrite")),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models import tiny_bundle

    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", ADAPTER)


@pytest.fixture
def place(tmp_path: Path, bundle: Path) -> Place:
    """The folder of a case, with an earlier output that must stay as it is."""
    made = Place(tmp_path, bundle)
    write_scene(made.scene)
    (made.out / "scene").mkdir(parents=True)
    (made.out / "scene" / "objects.parquet").write_bytes(b"the work of last week")
    (tmp_path / "tmp").mkdir()
    return made


def run(words: list[str], folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """The installed command, with its temporary files and its registry inside the case's folder."""
    installed = Path(sys.executable).with_name("maskbridge")
    start = [str(installed)] if installed.exists() else [sys.executable, "-m", "pipelines.cli"]
    environment = {
        **os.environ,
        "TMPDIR": str(folder / "tmp"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PREFECT_API_URL", None)
    return subprocess.run(
        [*start, *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=folder,
        env=environment,
        **options,  # type: ignore[call-overload]
    )


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below, with the hash of its bytes; torch's own empty cache folder is not ours."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith("torchinductor_")
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_changes_nothing(case: Case, place: Place) -> None:
    words = case.prepare(place)
    before = snapshot(place.folder)
    done = run(words, place.folder)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for said in case.says:
        assert said in line
    assert snapshot(place.folder) == before


def test_a_full_disk_leaves_the_earlier_output_and_nothing_half_written(place: Place) -> None:
    """No file may grow beyond 10 kB, and the first shard does: the error is the one a full disk gives."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    before = snapshot(place.folder)
    done = run(place.predict(), place.folder, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if " elapsed" not in line]  # progress, on a slow machine
    assert line.startswith("error: ") and "the disk is full" in line and str(place.out) in line
    assert snapshot(place.folder) == before


def test_a_scene_without_a_crs_is_predicted_and_said_so(place: Place) -> None:
    """Allowed; and the earlier output of that name stays: the new one takes a suffix."""
    bare = (
        write_scene(place.folder / "bare" / "scene.tif", crs=None) if (place.folder / "bare").mkdir() is None else None
    )
    before = snapshot(place.out)
    done = run(place.predict(scene=bare), place.folder)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder == place.out / "scene-2"
    assert {key: value for key, value in snapshot(place.out).items() if key in before} == before
    assert {path.name for path in folder.iterdir()} == {
        "semantic.tif", "semantic.tif.aux.xml", "objects.gpkg", "objects.qml", "objects.parquet", "report.html",
        "run.json",
    }  # fmt: skip
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["source"]["crs"] is None
    assert any("CRS" in warning for warning in manifest["warnings"])
    assert not any(path.is_file() for path in (place.folder / "tmp").rglob("*"))
