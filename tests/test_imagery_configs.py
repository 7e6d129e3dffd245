"""The configs of the picture sets: with data laid out as published, every label is found and a training step runs."""

from pathlib import Path

import pytest
import yaml

from adapters.base import DomainAdapter
from maskformer.config import ModelConfig
from pipelines.config import RunConfig, load_config
from pipelines.labelled import LabelledData
from tests.picture_sets import SETS

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "imagery"

# Objects of a training picture: stuff is one a class.
OBJECTS = {"cityscapes-panoptic": 4, "coco-panoptic": 3, "ade20k-semantic": 3, "defects-instance": 2}
PICTURES = {"cityscapes-panoptic": 8, "coco-panoptic": 6, "ade20k-semantic": 6, "defects-instance": 8}


def test_a_config_for_every_set() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(SETS) == set(OBJECTS)


@pytest.mark.parametrize("name", SETS)
def test_a_config_is_valid(name: str) -> None:
    config = RunConfig.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))
    ModelConfig.from_preset(config.model.preset, **config.model.overrides)
    assert isinstance(config.adapter, dict)
    assert DomainAdapter.from_dict(config.adapter).photos


@pytest.mark.parametrize("name", SETS)
def test_a_set_laid_out_as_published_is_read_whole(name: str, tmp_path: Path) -> None:
    SETS[name](tmp_path)
    (tmp_path / "run.yaml").write_text((FOLDER / f"{name}.yaml").read_text())
    with LabelledData(load_config(tmp_path / "run.yaml")) as data:
        assert len(data.scenes) == PICTURES[name]
        assert {len(scene.annotations.objects) for scene in data.scenes} == {OBJECTS[name]}
        assert data.split.train and data.split.test
