"""The example configs run: they load, name presets and files there are, and their parts hold labels."""

from pathlib import Path

import pytest

from adapters.errors import InputError
from maskformer.config import ModelConfig
from pipelines.config import load_config
from pipelines.labelled import LabelledData
from pipelines.samples import SAMPLES, fetch

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


def test_there_are_three() -> None:
    assert [path.stem for path in CONFIGS] == ["buildings", "crowns", "roads"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_example_names_what_there_is(path: Path) -> None:
    config = load_config(path)
    ModelConfig.from_preset(config.model.preset, **config.model.overrides)
    for item in config.data:
        for reference in (item.source, item.labels):
            assert reference is not None
            sample, _, member = reference.removeprefix("sample:").partition("/")
            assert member in {file.name for file in SAMPLES[sample].members}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_part_of_an_example_holds_labels(path: Path) -> None:
    config = load_config(path)
    try:
        for item in config.data:
            fetch(item.source.removeprefix("sample:").partition("/")[0])
    except InputError as error:
        pytest.skip(f"the samples cannot be fetched here: {error}")
    with LabelledData(config) as data:
        for role in ("train", "validation", "test"):
            places = getattr(data.split, role)
            assert sum(len(data.view(place)[1].objects) for place in places) > 0, role
