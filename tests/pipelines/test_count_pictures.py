"""`maskbridge count`: what it leaves, that only new pictures are counted, and that bad ones do not stop the rest."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from PIL import Image

from adapters.crowd import crowd
from adapters.errors import InputError
from pipelines import cli, count_pictures
from pipelines.bundle import Bundle
from pipelines.config import PredictOptions
from pipelines.count_files import density, density_picture
from pipelines.counting import SoftPoints
from pipelines.picture_runs import pictures_of, read_records
from tests.models import tiny_bundle
from tests.pipelines.test_counting import Spots

OPTIONS = PredictOptions(tile=64, overlap=32, score=0.5, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", crowd(tile=64, tile_overlap=32))


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of every bundle finds the bright spots, each of its own brightness, and nothing else."""
    monkeypatch.setattr(Bundle, "build", lambda self, device="cpu": Rounded())


class Rounded(Spots):
    """`Spots` on a normalised red channel: brightness 100 + 2 n is object n, less is nothing."""

    def __init__(self) -> None:
        super().__init__(60)

    def forward(self, x: torch.Tensor):
        values = (x[:, :1] * 58.395 + 123.675).round()
        return super().forward(torch.where(values >= 100, values, torch.zeros(())))


def pixels(count: int, shape=(96, 144)) -> np.ndarray:
    """`count` squares of 8 px, in steps of 16."""
    picture = np.zeros((*shape, 3), np.uint8)
    for number in range(count):
        top, left = number // (shape[1] // 16) * 16 + 4, number % (shape[1] // 16) * 16 + 4
        picture[top : top + 8, left : left + 8] = 100 + 2 * number
    return picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for name, count in (("b.png", 12), ("a.png", 5), ("nobody.png", 0)):
        Image.fromarray(pixels(count)).save(place / name)
    (place / "notes.txt").write_text("not a picture")
    return place


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "counts.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


@pytest.mark.usefixtures("knows")
def test_counts_and_files_of_a_folder(bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = count_pictures.count_pictures(bundle, folder, out, OPTIONS)
    assert run.fresh == 3 and not run.failed
    found = rows(out)
    assert {name: int(row["count"]) for name, row in found.items()} == {"a.png": 5, "b.png": 12, "nobody.png": 0}
    for row in found.values():
        assert float(row["low_90"]) <= float(row["expected"]) <= float(row["high_90"])
        assert float(row["expected"]) == pytest.approx(int(row["count"]), abs=0.1)
    assert sorted(p.name for p in (out / "b").iterdir()) == ["count.json", "density.png", "overlay.jpg", "points.csv"]
    with (out / "b" / "points.csv").open(newline="") as file:
        places = [(float(row["x"]), float(row["y"]), row["class"]) for row in csv.DictReader(file)]
    assert sorted(places) == sorted((n % 9 * 16 + 8.0, n // 9 * 16 + 8.0, "person") for n in range(12))
    with Image.open(out / "b" / "overlay.jpg") as overlay, Image.open(out / "b" / "density.png") as heat:
        assert overlay.size == heat.size == (144, 96)
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["count"] == 17 and manifest["pictures"] == 3 and manifest["failed"] == {} == manifest["full"]
    page = (out / "report.html").read_text()
    assert "17 in 3 pictures" in page and page.count("<figure>") == 3
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page, "opens offline"


@pytest.mark.usefixtures("knows")
def test_only_what_is_new_or_changed_is_counted(bundle: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    count_pictures.count_pictures(bundle, folder, out, OPTIONS)
    before = (out / "counts.csv").read_bytes()
    assert count_pictures.count_pictures(bundle, folder, out, OPTIONS).fresh == 0
    os.utime(folder / "a.png", (1, 1))
    assert count_pictures.count_pictures(bundle, folder, out, OPTIONS).fresh == 0, "touched, the same bytes"
    assert (out / "counts.csv").read_bytes() == before
    Image.fromarray(pixels(7)).save(folder / "a.png")
    Image.fromarray(pixels(3)).save(folder / "c.jpg", quality=100, subsampling=0)
    run = count_pictures.count_pictures(bundle, folder, out, OPTIONS)
    assert run.fresh == 2
    assert rows(out)["a.png"]["count"] == "7" and "c.jpg" in rows(out)
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["a", "b", "c", "nobody"]
    (out / "b" / "count.json").write_text("{")
    assert count_pictures.count_pictures(bundle, folder, out, OPTIONS).fresh == 1, "a broken record is none"
    other = OPTIONS.model_copy(update={"score": 0.9})
    with pytest.raises(InputError, match="another model or other options"):
        count_pictures.count_pictures(bundle, folder, out, other)
    assert count_pictures.count_pictures(bundle, folder, out, other, overwrite=True).fresh == 4


@pytest.mark.usefixtures("knows")
def test_one_bad_picture_does_not_stop_a_folder(bundle: Path, folder: Path, tmp_path: Path, capsys) -> None:
    (folder / "broken.png").write_bytes((folder / "b.png").read_bytes()[:150])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "walk.mp4").write_bytes(b"frames")
    out = tmp_path / "out"
    words = ["count", str(bundle), str(folder), "--out", str(out), "--device", "cpu", "--precision", "fp32"]
    assert cli.run(words) == 3
    said = capsys.readouterr()
    assert "broken.png" in said.err and "17 in 3 pictures, 3 of them new" in said.err
    assert said.out.strip() == str(out / "counts.csv")
    failed = json.loads((out / "run.json").read_text())["failed"]
    assert set(failed) == {"broken.png", "empty.jpg", "walk.mp4"} and "not a video" in failed["walk.mp4"]
    assert not list(out.glob(".*")), "nothing half-written"
    assert cli.run(["count", str(bundle), str(folder / "walk.mp4"), "--out", str(out)]) == 2
    assert cli.run(["count", str(bundle), str(folder / "empty.jpg"), "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())


@pytest.mark.usefixtures("knows")
def test_a_scene_on_the_ground_has_points_there(bundle: Path, make_geotiff, tmp_path: Path) -> None:
    place = Affine(0.5, 0, 400_000, 0, -0.5, 3_000_000)
    scene = make_geotiff(np.moveaxis(pixels(4), -1, 0), crs="EPSG:32617", transform=place)
    count_pictures.count_pictures(bundle, scene, tmp_path / "out", OPTIONS)
    features = json.loads((tmp_path / "out" / "scene" / "points.geojson").read_text())["features"]
    import pyproj

    to_utm = pyproj.Transformer.from_crs(4326, 32617, always_xy=True)
    found = sorted(to_utm.transform(*feature["geometry"]["coordinates"]) for feature in features)
    np.testing.assert_allclose(found, [place @ (8 + 16 * n, 8) for n in range(4)], atol=0.01)


def test_a_real_model_counts_a_photo(bundle: Path, folder: Path, tmp_path: Path) -> None:
    run = count_pictures.count_pictures(bundle, folder / "b.png", tmp_path / "out", OPTIONS)
    record = run.records[0]
    low, high = record["interval_90"]
    assert record["crops"] >= 8 and low <= record["expected"] <= high
    assert set(read_records(tmp_path / "out", "count.json")) == {"b.png"}


def test_two_pictures_of_one_name_have_two_folders(bundle: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").rename(folder / "a.bmp")
    run = count_pictures.count_pictures(bundle, folder, tmp_path / "out", OPTIONS)
    assert sorted(r["folder"] for r in run.records) == ["a", "a-2", "nobody"]


def test_nothing_to_count_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in the folder"):
        pictures_of(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        pictures_of(tmp_path / "nothing")


def test_the_density_map_sums_to_the_expected_count() -> None:
    random = np.random.default_rng(0)
    soft = SoftPoints(random.uniform(0, (300, 200), (50, 2)), random.random(50))
    heat = density(soft, (100, 150), 2.0)
    assert heat.sum() == pytest.approx(soft.p.sum())
    picture = density_picture(np.full((100, 150, 3), 128, np.uint8), heat)
    assert picture.shape == (100, 150, 3) and picture.dtype == np.uint8
    assert density(SoftPoints.nothing(), (10, 10), 1.0).sum() == 0
