"""The satellite configs whose data are not samples: valid without the data; with them, every class is learned."""

from pathlib import Path

import pytest
import yaml

from adapters.base import DomainAdapter
from benchmarks.satellite import CONFIGS as MEASURED
from maskformer.config import ModelConfig
from pipelines.config import RunConfig, load_config
from pipelines.labelled import LabelledData

ROOT = Path(__file__).resolve().parents[1] / "configs"
CONFIGS = sorted((ROOT / "satellite").glob("*.yaml"))
CLASSES = {"aerial-buildings": 1, "clouds": 4, "landsat": 4}


def test_they_are_all_there_and_measured() -> None:
    assert {path.stem for path in CONFIGS} == set(CLASSES)
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in CONFIGS} <= set(MEASURED)
    assert all((ROOT / f"{name}.yaml").is_file() for name in MEASURED)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid(path: Path) -> None:
    config = RunConfig.model_validate(yaml.safe_load(path.read_text()))
    ModelConfig.from_preset(config.model.preset, **config.model.overrides)
    assert isinstance(config.adapter, dict)
    adapter = DomainAdapter.from_dict(config.adapter)
    assert len(adapter.classes) == CLASSES[path.stem] and config.baseline is not None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_learns_and_what_is_held_out_hold_every_class(path: Path, shared_data: Path) -> None:
    config = load_config(path)
    there = str(shared_data)
    items = tuple(
        item.model_copy(
            update={
                "source": there + "/satellite/" + item.source.split("/satellite/")[-1],
                "labels": there + "/satellite/" + str(item.labels).split("/satellite/")[-1],
            }
        )
        for item in config.data
    )
    with LabelledData(config.model_copy(update={"data": items})) as data:
        for role in ("train", "test"):
            found: set[int] = set()
            for place in getattr(data.split, role):
                found |= set(data.view(place)[1].objects.labels.tolist())
            assert found == set(range(CLASSES[path.stem])), role
