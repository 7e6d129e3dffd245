"""The configs for CT and MR: valid without the data, and with the data every patient is found and held out once."""

import json
from pathlib import Path

import pytest
import yaml

from adapters.base import DomainAdapter
from benchmarks.record import RESULTS
from maskformer.config import ModelConfig
from pipelines.config import RunConfig, load_config
from pipelines.volumes.augmentation import SliceAugmentation
from pipelines.volumes.cases import gather_cases, split_cases
from pipelines.volumes.prepared import CaseStore, check_cases

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "medical"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
PATIENTS = {"hippocampus": 12, "sarcoma-ct": 7, "sarcoma-mr": 7}


def test_they_are_all_there() -> None:
    assert {path.stem for path in CONFIGS} == set(PATIENTS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid(path: Path) -> None:
    config = RunConfig.model_validate(yaml.safe_load(path.read_text()))
    ModelConfig.from_preset(config.model.preset, **config.model.overrides)
    SliceAugmentation(config.train.augment)
    assert isinstance(config.adapter, dict)
    adapter = DomainAdapter.from_dict(config.adapter)
    assert adapter.volume is not None and adapter.context_slices >= 1 and config.baseline is not None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_patient_is_found_and_held_out_once(path: Path, shared_data: Path) -> None:
    config = load_config(path)
    items = tuple(
        item.model_copy(update={"source": item.source.replace(item.source.split("/medical/")[0], str(shared_data))})
        for item in config.data
    )
    config = config.model_copy(update={"data": items})
    check_cases(config)
    cases = gather_cases(config)
    assert len({case.case.patient for case in cases}) == len(cases) == PATIENTS[path.stem]
    folds = config.split.folds
    assert folds is not None
    held = [one.case.patient for k in range(folds) for one in split_cases(cases, config.split, k).test]
    assert len(held) == len(set(held)) == len(cases)
    adapter = DomainAdapter.from_dict(config.adapter)  # type: ignore[arg-type]
    with CaseStore(adapter) as store:
        (case,) = store.prepare(cases[:1])
        assert case.labels.tolist() == list(range(len(adapter.classes))), "every class is in the first case"
        spacing = adapter.spacing
        assert spacing is not None and case.axes == (2,)


def test_the_hippocampus_is_found_as_well_as_was_asked() -> None:
    record = json.loads((RESULTS / "hippocampus.json").read_text())
    assert record["patients"] == 12 and record["mask_model"]["dice"] >= record["goal"]["dice"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "hippocampus",
            marks=pytest.mark.xfail(strict=True, reason="1.5 points behind: see hippocampus in benchmarks/README.md"),
        ),
        "sarcoma_ct",
        "sarcoma_mr",
    ],
)
def test_the_mask_model_is_at_most_a_point_behind_the_per_pixel_network(name: str) -> None:
    record = json.loads((RESULTS / f"{name}.json").read_text())
    assert record["unet"]["dice"] - record["mask_model"]["dice"] <= record["goal"]["dice_behind_unet"] == 0.01


def test_a_large_scan_keeps_to_its_memory_and_its_share_of_files() -> None:
    record = json.loads((RESULTS / "volumes.json").read_text())
    for side in ("objects", "objects_resampled", "classes"):
        assert record[side]["memory_gib_without_model"] <= record["goal"]["memory_gib_without_model"] == 3.0
        share = record[side]["reading_resampling_writing_share"]
        assert share <= record["goal"]["reading_resampling_writing_share"] == 0.2
