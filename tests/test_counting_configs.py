"""The configs of the crowd sets: valid without the data, and with data laid out as published they find every label."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import yaml
from PIL import Image

from maskformer.config import ModelConfig
from pipelines.config import RunConfig, load_config
from pipelines.labelled import LabelledData
from tests.pipelines.test_points import mall, shanghaitech

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "counting"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
POINTS = np.array([[10.0, 20.0], [30.0, 40.0], [50.0, 20.0]])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid(path: Path) -> None:
    config = RunConfig.model_validate(yaml.safe_load(path.read_text()))
    model = ModelConfig.from_preset(config.model.preset, **config.model.overrides)
    assert model.num_queries >= 100
    from adapters.base import DomainAdapter

    assert isinstance(config.adapter, dict)
    assert DomainAdapter.from_dict(config.adapter).points is not None, "it counts"


def test_the_sets_are_all_there() -> None:
    assert {"jhu-crowd", "mall", "nuclei", "shanghaitech-a", "shanghaitech-b", "ucf-qnrf"} <= {p.stem for p in CONFIGS}


def photos(folder: Path, names: list[str]) -> list[Path]:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (64, 64)).save(folder / name)
    return [folder / name for name in names]


def layout(name: str, root: Path) -> None:
    """A few pictures as the set is published, three people each."""
    if name.startswith("shanghaitech"):
        for part in ("train_data", "test_data"):
            place = root / "ShanghaiTech" / f"part_{name[-1].upper()}" / part
            (place / "ground-truth").mkdir(parents=True)
            for photo in photos(place / "images", [f"IMG_{n}.jpg" for n in range(1, 5)]):
                scipy.io.savemat(place / "ground-truth" / f"GT_{photo.stem}.mat", shanghaitech(POINTS))
    elif name == "ucf-qnrf":
        for part in ("Train", "Test"):
            for photo in photos(root / "UCF-QNRF_ECCV18" / part, [f"img_{n:04d}.jpg" for n in range(1, 5)]):
                scipy.io.savemat(photo.with_name(f"{photo.stem}_ann.mat"), {"annPoints": POINTS})
    elif name == "mall":
        numbers = [1, 2, 799, 800, 801, 815, 999, 1000, 2000]
        photos(root / "mall_dataset" / "frames", [f"seq_{n:06d}.jpg" for n in numbers])
        scipy.io.savemat(root / "mall_dataset" / "mall_gt.mat", mall(*[POINTS] * 2000))
    elif name == "jhu-crowd":
        for part in ("train", "val", "test"):
            place = root / "jhu_crowd_v2.0" / part
            (place / "gt").mkdir(parents=True)
            for photo in photos(place / "images", ["0001.jpg", "0002.jpg"]):
                (place / "gt" / f"{photo.stem}.txt").write_text("10 20 8 8 1 0\n30 40 8 8 1 0\n50 20 8 8 2 1\n")


@pytest.mark.parametrize("name", ["jhu-crowd", "mall", "shanghaitech-a", "shanghaitech-b", "ucf-qnrf"])
def test_a_set_laid_out_as_published_is_read_whole(name: str, tmp_path: Path) -> None:
    layout(name, tmp_path)
    (tmp_path / "run.yaml").write_text((FOLDER / f"{name}.yaml").read_text())
    with LabelledData(load_config(tmp_path / "run.yaml")) as data:
        assert all(len(scene.annotations.objects) == 3 for scene in data.scenes)
        split = data.split
        assert split.train and split.validation and split.test
        if name == "mall":
            held_out = sorted(int(data.scenes[p.item].path.stem[4:]) for p in split.test)
            assert held_out == [801, 815, 999, 1000, 2000], "the first 800 frames are learned from"
