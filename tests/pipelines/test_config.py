"""The run config: round trip, readable faults, paths as seen from the file."""

from pathlib import Path

import pytest

from adapters.errors import InputError
from pipelines.config import RunConfig, load_config, save_config

MINIMAL = "adapter: {name: x}\ndata: [{source: a.tif, labels: a.geojson}]\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_round_trip(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL + "train: {steps: 3, batch: 2}\npredict: {tile: 256}\n"))
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


def test_a_null_that_switches_something_off_survives(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL + "train: {steps: 3, clip: null, ema: null}\n"))
    save_config(config, tmp_path / "again.yaml")
    again = load_config(tmp_path / "again.yaml")
    assert again == config and again.train.clip is None and again.train.ema is None


def test_relative_paths_are_seen_from_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert config.data[0].source == str(tmp_path / "a.tif")
    assert config.data[0].labels == str(tmp_path / "a.geojson")


@pytest.mark.parametrize("kept", ["sample:neon-crowns/x.png", "https://example.org/x.tif", "/vsizip/x.zip/x.tif"])
def test_references_that_are_no_local_paths_stay(tmp_path: Path, kept: str) -> None:
    config = load_config(write(tmp_path, f"adapter: {{}}\ndata: [{{source: '{kept}'}}]\n"))
    assert config.data[0].source == kept


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("trian: {steps: 3}", "did you mean `train`?"),
        ("train: {steps: 3, bach: 2}", "unknown key `train.bach`; did you mean `batch`?"),
        ("train: {steps: 3, minutes: 1}", "give either `minutes` or `steps`"),
        ("train: {steps: many}", "`train.steps`: Input should be a valid integer"),
        ("split: {validation: 0.6, test: 0.5}", "nothing is left to train on"),
        ("predict: {task: instances}", "'semantic', 'instance' or 'panoptic'"),
        ("train: {steps: 3, crop: 100}", "multiple of 32"),
    ],
)
def test_faults_are_one_line_that_names_file_key_and_way_out(tmp_path: Path, extra: str, said: str) -> None:
    path = write(tmp_path, MINIMAL + extra + "\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [", "adapter: {}\n"])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"run\.yaml"):
        load_config(write(tmp_path, text))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_config(tmp_path / "none.yaml")


def test_a_typo_in_an_item_of_a_list_is_named_where_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "adapter: {}\ndata: [{source: a.tif, lables: b}]\n")
    with pytest.raises(InputError, match=r"unknown key `data\.0\.lables`; did you mean `labels`\?$"):
        load_config(path)


def test_a_typo_in_label_options_too(tmp_path: Path) -> None:
    path = write(tmp_path, "adapter: {}\ndata: [{source: a.tif, labels: b, label_options: {boxs: box}}]\n")
    with pytest.raises(InputError, match=r"unknown key `data\.0\.label_options\.boxs`; did you mean `boxes`\?$"):
        load_config(path)


def test_every_field_of_the_schema_reaches_the_form() -> None:
    properties = RunConfig.model_json_schema()["properties"]
    assert set(properties) == set(RunConfig.model_fields)
