"""The configs of the picture sets: with data laid out as published, every label is found and a training step runs."""

from pathlib import Path

import pytest
import yaml

from adapters.base import DomainAdapter
from maskformer.config import ModelConfig
from pipelines.bundle import load_bundle
from pipelines.config import PredictOptions, RunConfig, load_config
from pipelines.experiments import train
from pipelines.labelled import LabelledData
from pipelines.picture_prediction import predict_pictures
from tests.models import TINY
from tests.picture_sets import SETS, photo

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


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_config_trains_a_step_scores_and_predicts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run: the config as it is, but for the size of the network, and weights that would have to be fetched."""
    monkeypatch.setenv("MASKBRIDGE_TRACKING", "off")
    SETS[name](tmp_path)
    held = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    held["model"] = {"preset": held["model"]["preset"], "overrides": {**held["model"].get("overrides", {}), **TINY}}
    held["train"] |= {"minutes": None, "steps": 1, "batch": 2, "crop": 64, "accumulate": 1, "workers": 0}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(held))
    outcome = train(load_config(tmp_path / "run.yaml"), tmp_path / "out")
    assert 0 <= outcome.metrics["pq"] <= 1 and 0 <= outcome.metrics["miou"] <= 1
    bundle = load_bundle(outcome.bundle)
    assert bundle.adapter.classes.names == DomainAdapter.from_dict(held["adapter"]).classes.names
    photo(tmp_path / "photos" / "1.png")
    run = predict_pictures(outcome.bundle, tmp_path / "photos", tmp_path / "seen", PredictOptions(device="cpu"))
    assert run.fresh == 1 and not run.failed and (tmp_path / "seen" / "instances.json").exists()
