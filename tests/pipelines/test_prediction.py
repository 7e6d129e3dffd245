"""From file to files: the five outputs, resume from shards, areas of interest, nothing lost on failure."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine

from adapters.errors import InputError
from pipelines import assembly, blending, cli, shards
from pipelines.blending import Blender
from pipelines.bundle import load_bundle
from pipelines.config import PredictOptions, WriteOptions
from pipelines.prediction import finish_scene, forecast, predict_scene
from pipelines.scene import plan_scene
from pipelines.shards import is_finished, predict_shard
from pipelines.work_folder import work_folder
from tests.models import adapter, tiny_bundle

OPTIONS = PredictOptions(tile=64, overlap=16, score=0.05, min_area=1, device="cpu", precision="fp32", shard_tiles=3)
FILES = {
    *("semantic.tif", "semantic.tif.aux.xml", "objects.gpkg", "objects.qml", "objects.parquet"),
    *("report.html", "run.json"),
}
PLACE = Affine(0.5, 0, 400_000, 0, -0.5, 3_300_000)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rgb = adapter(channels=("red", "green", "blue"))
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", rgb, thresholds={"semantic": 0.3})


@pytest.fixture
def scene(make_geotiff: Callable[..., Path]) -> Path:
    random = np.random.default_rng(0)
    picture = random.integers(1, 255, (3, 130, 170)).astype(np.uint8)
    picture[:, :20, :30] = 0
    return make_geotiff(picture, crs="EPSG:32617", transform=PLACE, nodata=0)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_that_agree(scene: Path, bundle: Path, tmp_path: Path) -> None:
    folder = predict_scene(scene, bundle, tmp_path / "out", OPTIONS)
    assert folder == tmp_path / "out" / "scene"
    assert {p.name for p in folder.iterdir()} == FILES
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scene"], "no shard and no temporary is left"
    run = json.loads((folder / "run.json").read_text())
    assert set(run) >= {
        "version", "model", "source", "parameters", "timings_s", "peak_rss_bytes", "objects", "ambiguous_links",
        "outputs", "warnings", "versions",
    }  # fmt: skip
    assert run["outputs"] == {name: digest(folder / name) for name in sorted(FILES - {"run.json"})}
    assert run["source"]["sha256"] == digest(scene) and run["source"]["shape"] == [130, 170]
    objects = geopandas.read_parquet(folder / "objects.parquet")
    assert len(objects) == run["objects"] == len(geopandas.read_file(folder / "objects.gpkg")) > 0
    assert objects.geometry.is_valid.all() and objects.crs.to_epsg() == 32617
    with rasterio.open(folder / "semantic.tif") as written, rasterio.open(scene) as source:
        assert (written.shape, written.transform, written.crs) == (source.shape, source.transform, source.crs)
        ids = written.read(1)
    assert (ids[:20, :30] == 255).all() and (ids[20:] != 255).all()


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_a_wide_scene_is_put_together_block_of_columns_by_block_to_the_same_bytes(
    task: str, scene: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS.model_copy(update={"task": task})
    whole = predict_scene(scene, bundle, tmp_path / "whole", options, write=WriteOptions(confidence=True))
    monkeypatch.setattr(blending, "BLOCK_BYTES", 1)
    monkeypatch.setattr(blending, "RASTER_BLOCK", 48)  # four blocks, none of which ends where a tile does
    made = []
    monkeypatch.setattr(assembly, "Blender", lambda *words: made.append(Blender(*words)) or made[-1])
    blocks = predict_scene(scene, bundle, tmp_path / "blocks", options, write=WriteOptions(confidence=True))
    assert [one.columns for one in made] == [slice(0, 48), slice(48, 96), slice(96, 144), slice(144, 170)]
    for name in ("semantic.tif", "confidence.tif", "objects.parquet"):
        assert digest(blocks / name) == digest(whole / name), name


def test_a_repeated_run_gives_the_same_bytes_beside_the_first(scene: Path, bundle: Path, tmp_path: Path) -> None:
    first = predict_scene(scene, bundle, tmp_path, OPTIONS)
    second = predict_scene(scene, bundle, tmp_path, OPTIONS)
    assert second.name == "scene-2"
    for name in ("semantic.tif", "objects.parquet"):
        assert digest(first / name) == digest(second / name)
    third = predict_scene(scene, bundle, tmp_path, OPTIONS, overwrite=True)
    assert third == first


def test_finished_shards_are_found_and_only_the_missing_one_is_computed(
    scene: Path, bundle: Path, tmp_path: Path
) -> None:
    plan = plan_scene(scene, bundle, OPTIONS)
    assert len(plan.shards) > 2 and sorted(i for s in plan.shards for i in s) == list(range(len(plan.grid)))
    work = work_folder(plan, tmp_path)
    assert all(predict_shard(plan, number, work) for number in range(len(plan.shards)))
    whole = finish_scene(plan, work, tmp_path / "a")
    (work / "shard-0001.npz").unlink()
    assert [predict_shard(plan, number, work) for number in range(len(plan.shards))].count(True) == 1
    again = finish_scene(plan, work, tmp_path / "b")
    assert digest(whole / "objects.parquet") == digest(again / "objects.parquet")


def test_a_damaged_shard_or_one_of_another_plan_does_not_count(scene: Path, bundle: Path, tmp_path: Path) -> None:
    plan = plan_scene(scene, bundle, OPTIONS)
    work = work_folder(plan, tmp_path)
    predict_shard(plan, 0, work)
    assert is_finished(plan, 0, work)
    other = plan_scene(scene, bundle, OPTIONS.model_copy(update={"score": 0.2}))
    assert other.key != plan.key and not is_finished(other, 0, work)
    data = work / "shard-0000.npz"
    data.write_bytes(data.read_bytes()[:-10])
    assert not is_finished(plan, 0, work)


def test_interrupted_and_called_again_it_goes_on(
    scene: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched = predict_scene(scene, bundle, tmp_path / "untouched", OPTIONS)
    computed: list[int] = []
    write = shards._write

    def write_then_stop(plan, number, *rest):  # type: ignore[no-untyped-def]
        write(plan, number, *rest)
        computed.append(number)
        if number == 1 and len(computed) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(shards, "_write", write_then_stop)
    with pytest.raises(KeyboardInterrupt):
        predict_scene(scene, bundle, tmp_path / "out", OPTIONS)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".shards"], "no output that is not complete"
    folder = predict_scene(scene, bundle, tmp_path / "out", OPTIONS)
    assert len(computed) == len(set(computed)), "no shard twice"
    assert digest(folder / "objects.parquet") == digest(untouched / "objects.parquet")


def test_area_of_interest_in_another_crs_clips_the_results(scene: Path, bundle: Path, tmp_path: Path) -> None:
    from shapely import box

    inside = box(400_010, 3_299_950, 400_040, 3_299_980)  # columns 20..80, rows 40..100
    aoi = tmp_path / "aoi.geojson"
    geopandas.GeoSeries([inside], crs=32617).to_crs(4326).to_file(aoi)
    folder = predict_scene(scene, bundle, tmp_path / "out", OPTIONS.model_copy(update={"aoi": str(aoi)}))
    with rasterio.open(folder / "semantic.tif") as written:
        seen = written.read(1) != 255
    rows, columns = np.nonzero(seen)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 99, 20, 79)
    objects = geopandas.read_parquet(folder / "objects.parquet")
    assert len(objects) and objects.within(inside.buffer(1e-6)).all()


def test_an_area_that_misses_the_scene_is_refused(scene: Path, bundle: Path, tmp_path: Path) -> None:
    from shapely import box

    aoi = tmp_path / "far.geojson"
    geopandas.GeoSeries([box(0, 0, 1, 1)], crs=4326).to_file(aoi)
    with pytest.raises(InputError, match=r"far\.geojson: covers .* outside the scene"):
        predict_scene(scene, bundle, tmp_path / "out", OPTIONS.model_copy(update={"aoi": str(aoi)}))
    assert not (tmp_path / "out").exists()


def test_a_failing_run_leaves_an_earlier_output_as_it_was(
    scene: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = predict_scene(scene, bundle, tmp_path / "out", OPTIONS)
    before = {p.name: digest(p) for p in folder.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.prediction.write_objects", fail)
    with pytest.raises((InputError, OSError)):
        predict_scene(scene, bundle, tmp_path / "out", OPTIONS, overwrite=True)
    assert {p.name: digest(p) for p in folder.iterdir()} == before
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"scene", ".shards"}


def test_a_scene_without_crs_and_smaller_than_a_tile(
    make_geotiff: Callable[..., Path], bundle: Path, tmp_path: Path
) -> None:
    path = make_geotiff(np.random.default_rng(1).integers(0, 255, (3, 33, 1)).astype(np.uint8), name="strip.tif")
    folder = predict_scene(path, bundle, tmp_path / "out", OPTIONS)
    run = json.loads((folder / "run.json").read_text())
    assert run["source"]["crs"] is None and "no CRS" in run["warnings"][0]
    assert "area_px" in geopandas.read_parquet(folder / "objects.parquet").columns


def test_dry_run_counts_what_is_left(scene: Path, bundle: Path, tmp_path: Path) -> None:
    plan = plan_scene(scene, bundle, OPTIONS)
    fresh = forecast(plan, tmp_path)
    assert (fresh.tiles, fresh.shards, fresh.finished_shards) == (len(plan.grid), len(plan.shards), 0)
    assert fresh.seconds > 0 and fresh.memory_bytes > 0 and fresh.disk_bytes > 0
    assert not any(tmp_path.glob(".shards")), "a dry run writes nothing"
    predict_shard(plan, 0, work_folder(plan, tmp_path))
    assert forecast(plan, tmp_path).finished_shards == 1


def test_a_model_that_changes_during_the_run_is_refused(scene: Path, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    plan = plan_scene(scene, copy, OPTIONS)
    shutil.rmtree(copy)
    tiny_bundle(copy, adapter(channels=("red", "green", "blue")), seed=1)
    with pytest.raises(RuntimeError, match="changed since the run was planned"):
        predict_shard(plan, 0, work_folder(plan, tmp_path))


def test_each_scene_may_have_a_model_of_its_own(
    bundle: Path, make_geotiff: Callable[..., Path], tmp_path: Path
) -> None:
    """--test-time: two scenes of other brightness get two models; none is left, and the answer does not vary."""
    random = np.random.default_rng(0)
    scenes = [
        make_geotiff(
            (random.normal(middle, 20, (3, 130, 170)).clip(1, 255)).astype(np.uint8),
            name=f"{name}.tif", crs="EPSG:32617", transform=PLACE, nodata=0,
        )
        for name, middle in (("dark", 60), ("bright", 190))
    ]  # fmt: skip
    common = ["--tile", "64", "--overlap", "16", "--device", "cpu", "--score", "0.05", "--min-area", "1"]
    runs = {}
    for out in ("once", "again"):
        words = ["predict", str(bundle), *map(str, scenes), "--out", str(tmp_path / out), "--test-time", *common]
        assert cli.run(words) == 0
        assert sorted(path.name for path in (tmp_path / out).iterdir()) == ["bright", "dark"]
        runs[out] = {name: json.loads((tmp_path / out / name / "run.json").read_text()) for name in ("bright", "dark")}
    assert runs["once"]["bright"]["outputs"]["semantic.tif"] == runs["again"]["bright"]["outputs"]["semantic.tif"]
    models = {run["model"]["sha256"] for run in runs["once"].values()}
    assert len(models) == 2 and load_bundle(bundle).sha256 not in models
    assert models == {run["model"]["sha256"] for run in runs["again"].values()}
