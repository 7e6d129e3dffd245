"""What is new in a folder or a catalogue: settled files without a record, and nothing twice."""

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pystac
import pytest

from adapters.errors import InputError
from pipelines.config import PredictOptions, WriteOptions
from pipelines.new_scenes import SceneSearch, find_scenes, is_done, note_done, prediction_key, without_the_done

NOW = SceneSearch(settled_s=0)


def put(path: Path, age_s: float = 3600.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"raster")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def names(found: list) -> list[str]:
    return [Path(scene.address).name for scene in found]


def test_files_of_a_folder_by_a_pattern(tmp_path: Path) -> None:
    for name in ("b.tif", "a.tif", "notes.txt", ".hidden.tif", "deeper/c.tif", ".shards/d.tif"):
        put(tmp_path / name)
    put(tmp_path / "fresh.tif", age_s=5)
    assert names(find_scenes(tmp_path, SceneSearch())) == ["a.tif", "b.tif"]
    assert names(find_scenes(tmp_path, SceneSearch(pattern="**/*.tif", settled_s=0))) == [
        *("a.tif", "b.tif", "c.tif", "fresh.tif"),
    ]


def test_assets_of_a_catalogue(tmp_path: Path) -> None:
    put(tmp_path / "one" / "one.tif")
    put(tmp_path / "two" / "red.tif")
    put(tmp_path / "two" / "quality.tif")
    catalog = pystac.Catalog("scenes", "some scenes")
    for name, assets in {
        "one": {"image": ("one.tif", ["data"]), "thumbnail": ("one.png", ["thumbnail"])},
        "two": {"quality": ("quality.tif", ["metadata"]), "red": ("red.tif", ["data"])},
        "gone": {"image": ("gone.tif", ["data"])},
        "empty": {},
    }.items():
        item = pystac.Item(name, None, None, datetime(2026, 5, 1, tzinfo=UTC), {})
        for key, (file, roles) in assets.items():
            media = pystac.MediaType.PNG if file.endswith("png") else pystac.MediaType.COG
            item.add_asset(key, pystac.Asset(f"./{file}", media_type=media, roles=roles))
        catalog.add_item(item)
    catalog.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    found = find_scenes(tmp_path / "catalog.json", NOW)
    assert [scene.address for scene in found] == [str(tmp_path / "one" / "one.tif"), str(tmp_path / "two" / "red.tif")]
    named = find_scenes(tmp_path / "catalog.json", SceneSearch(asset="quality", settled_s=0))
    assert names(named) == ["quality.tif"]
    assert names(find_scenes(tmp_path / "one" / "one.json", NOW)) == ["one.tif"]


def test_a_record_makes_a_scene_old_until_anything_changes(tmp_path: Path) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    file = put(scenes / "a.tif")
    (scene,) = find_scenes(scenes, NOW)
    folder = out / "a"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    key = prediction_key("digest", PredictOptions(), WriteOptions())
    assert not is_done(scene, out, key)
    note_done(scene, out, key, folder)
    assert is_done(scene, out, key) and without_the_done([scene], out, key, 10) == []
    other = prediction_key("digest", PredictOptions(score=0.1), WriteOptions())
    assert other != key and not is_done(scene, out, other)
    assert prediction_key("another", PredictOptions(), WriteOptions()) != key
    put(file, age_s=60)
    (changed,) = find_scenes(scenes, NOW)
    assert not is_done(changed, out, key)
    (folder / "run.json").unlink()
    assert not is_done(scene, out, key), "somebody removed the result"
    next((out / ".scenes").iterdir()).write_text("[]")
    assert not is_done(scene, out, key)


def test_no_more_than_asked_for(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path / f"{number}.tif")
    assert names(without_the_done(find_scenes(tmp_path, NOW), tmp_path, "key", 2)) == ["0.tif", "1.tif"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"type": "Catalog"}', json.dumps({"type": "FeatureCollection"})])
def test_what_is_no_catalogue_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "catalog.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"catalog\.json: not a STAC catalogue"):
        find_scenes(path, NOW)


def test_what_is_neither_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder or catalogue"):
        find_scenes(tmp_path / "nowhere", NOW)
    with pytest.raises(InputError, match="expected a folder"):
        find_scenes(put(tmp_path / "scene.tif"), NOW)
