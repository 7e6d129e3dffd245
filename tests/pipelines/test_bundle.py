"""Bundles: same weights back, same bytes for the same input, and every kind of damage told by name."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.remote_sensing import rgb_aerial
from maskformer.config import ModelConfig
from maskformer.model import build_model
from pipelines.bundle import DESCRIPTION, WEIGHTS, Bundle, is_bundle, load_bundle, save_bundle
from pipelines.bundle_formats import FORMAT_VERSION, SEAL, sealed
from pipelines.model_card import CARD
from pipelines.sinks.folder import sha256

ADAPTER = rgb_aerial(ClassSet((Class("tree", "thing", ("Tree",), "#00aa00"),)))
TINY = ModelConfig(
    backbone="test_resnet",
    num_classes=1,
    num_queries=4,
    pixel_dim=32,
    mask_dim=32,
    hidden_dim=32,
    num_heads=4,
    decoder_layers=1,
    feedforward_dim=32,
)


def tiny_model(seed: int = 0, config: ModelConfig = TINY) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_bundle(
        tmp_path / "crowns",
        tiny_model(),
        ADAPTER,
        metrics={"miou": 0.5, "per_class": {"tree": {"iou": float("nan")}}},
        provenance={"seed": 3, "minutes": 0.5, "data": {"scene.tif": "ab" * 32}},
        thresholds={"score": 0.4},
    )


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    change(description)
    (folder / DESCRIPTION).write_text(json.dumps(sealed(description)))


def reseal(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights with a hash that agrees: what only the shape check can catch."""
    save_file(tensors, folder / WEIGHTS)
    rewrite(folder, lambda d: d["weights"].update(sha256=sha256(folder / WEIGHTS)))


def test_everything_comes_back(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert isinstance(bundle, Bundle)
    assert (bundle.config, bundle.adapter) == (TINY, ADAPTER)
    assert bundle.metrics == {"miou": 0.5, "per_class": {"tree": {"iou": None}}}
    assert bundle.thresholds == {"score": 0.4}
    assert bundle.provenance["data"] == {"scene.tif": "ab" * 32}
    assert bundle.provenance["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (bundle.name, bundle.version, bundle.folder) == ("crowns", None, folder)
    assert bundle.sha256 == sha256(folder / WEIGHTS) != bundle.digest == sha256(folder / DESCRIPTION)


@pytest.mark.parametrize("architecture", ["maskformer", "unet"])
def test_build_gives_the_same_outputs_in_eval_mode(tmp_path: Path, architecture: str) -> None:
    backbone = "test_resnet" if architecture == "maskformer" else "tf_efficientnet_lite0"
    model = tiny_model(config=TINY.replace(architecture=architecture, backbone=backbone)).eval()
    built = load_bundle(save_bundle(tmp_path / "b", model, ADAPTER)).build()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = model(x), built(x)
    assert not built.training
    torch.testing.assert_close(tuple(found)[:1], tuple(expected)[:1], rtol=0, atol=0)


def test_build_leaves_the_random_state_alone(folder: Path) -> None:
    bundle = load_bundle(folder)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    bundle.build()
    assert torch.equal(torch.rand(3), expected)


def test_equal_input_gives_equal_bytes(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    again = save_bundle(
        tmp_path / "again",
        tiny_model(),
        bundle.adapter,
        metrics={"per_class": {"tree": {"iou": None}}, "miou": 0.5},
        provenance={"data": {"scene.tif": "ab" * 32}, "minutes": 0.5, "seed": 3},
        thresholds=bundle.thresholds,
    )
    for name in (CARD, DESCRIPTION, WEIGHTS):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(p.name for p in again.iterdir()) == [CARD, DESCRIPTION, WEIGHTS]


def test_tied_weights_survive(tmp_path: Path) -> None:
    model = tiny_model()
    first, second = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)][:2]
    second.weight = first.weight
    built = load_bundle(save_bundle(tmp_path / "b", model, ADAPTER)).build()
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in built.state_dict().items())


def test_files_are_as_readable_as_any_other(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    mode = (tmp_path / "other").stat().st_mode
    assert [(folder / name).stat().st_mode for name in (DESCRIPTION, WEIGHTS)] == [mode, mode]


def test_a_training_run_s_folder_stands_for_its_bundle(tmp_path: Path) -> None:
    inner = save_bundle(tmp_path / "run" / "bundle", tiny_model(), ADAPTER)
    assert load_bundle(tmp_path / "run").folder == inner
    assert is_bundle(inner) and not is_bundle(tmp_path / "run")


def drop_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def not_json(folder: Path) -> None:
    (folder / DESCRIPTION).write_text("{")


def no_tensors_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x04 not safetensors")
    rewrite(folder, lambda d: d["weights"].update(sha256=sha256(folder / WEIGHTS)))


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(sorted(tensors)[0])
    reseal(folder, tensors)


def add_a_tensor(folder: Path) -> None:
    reseal(folder, {**load_file(folder / WEIGHTS), "stranger": torch.zeros(2)})


def edited(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rewrite(folder, lambda d: d.update(changes))

    return change


def edited_model(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rewrite(folder, lambda d: d["model"].update(changes))

    return change


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (drop_weights, r"weights\.safetensors is missing"),
        (truncate, r"weights\.safetensors is damaged or of another bundle: its sha256 is [0-9a-f]{64}"),
        (flip_a_bit, "is damaged or of another bundle"),
        (not_json, r"bundle\.json cannot be read"),
        (no_tensors_file, r"weights\.safetensors cannot be read"),
        (lose_a_tensor, r"do not fit the model config: 1 tensors missing \(first: "),
        (add_a_tensor, r"1 tensors the config does not know \(first: stranger\)"),
        (edited(format_version=9), f"bundle of format 9, but this maskbridge reads 1 to {FORMAT_VERSION}"),
        (edited(format_version=None), "bundle of format None"),
        (edited(format="zip"), "is not of a maskbridge bundle"),
        (edited(weights=None), "is damaged or of another bundle"),
        (edited(adapter={"name": "x"}), "does not describe a model and its adapter"),
        (edited(model=None), "does not describe a model and its adapter"),
        (edited_model(backbon="x"), r"unknown model setting 'backbon' \(did you mean 'backbone'\?\)"),
        (edited_model(num_queries=5), r"1 tensors of another shape \(first: .* is \(4, 32\), .* \(5, 32\)\)"),
        (edited_model(num_classes=2), "the model tells 2 classes, its adapter has 1"),
        (edited_model(in_channels=4), "the model takes 4 channels, its adapter gives 3"),
    ],
)
def test_damage_is_named_with_the_folder(folder: Path, damage: Callable[[Path], None], fault: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=fault) as caught:
        load_bundle(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["thresholds"].update(score=0.0),
        lambda d: d["adapter"]["channels"][0].update(offset=3.0),
        lambda d: d["model"].update(num_heads=2),
        lambda d: d["weights"].update(sha256="0" * 64),
        lambda d: d.pop(SEAL),
    ],
)
def test_a_changed_description_is_refused_in_one_line(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    change(description)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    with pytest.raises(InputError, match=r"^\S+crowns: bundle\.json was changed after it was written") as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


def test_a_description_laid_out_otherwise_is_the_same(folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(dict(reversed(description.items())), indent=4))
    assert load_bundle(folder).thresholds == {"score": 0.4}


def of_format_1(folder: Path) -> Path:
    """The bundle as maskbridge wrote it before descriptions had seals, and cards lay beside them."""
    description = json.loads((folder / DESCRIPTION).read_text())
    del description[SEAL]
    description["format_version"] = 1
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    (folder / CARD).unlink()
    return folder


def test_a_bundle_of_format_1_is_read_as_one_of_today(folder: Path, tmp_path: Path) -> None:
    now = load_bundle(folder)
    old = load_bundle(of_format_1(folder))
    assert (old.config, old.adapter, old.thresholds, old.metrics, old.provenance, old.sha256) == (
        now.config, now.adapter, now.thresholds, now.metrics, now.provenance, now.sha256,
    )  # fmt: skip
    again = save_bundle(
        tmp_path / "again", old.build(), old.adapter, metrics=old.metrics, provenance=old.provenance,
        thresholds=old.thresholds,
    )  # fmt: skip
    assert load_bundle(again).digest == now.digest


def test_weights_of_an_old_bundle_are_checked_too(folder: Path) -> None:
    flip_a_bit(of_format_1(folder))
    with pytest.raises(InputError, match="is damaged or of another bundle"):
        load_bundle(folder)


def test_a_prediction_with_a_tampered_model_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli import run

    flip_a_bit(folder)
    assert run(["predict", str(folder), str(tmp_path / "scene.tif"), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "weights.safetensors is damaged" in line
    assert not (tmp_path / "out").exists()


def test_weights_changed_after_loading_are_refused_by_build(folder: Path) -> None:
    bundle = load_bundle(folder)
    add_a_tensor(folder)
    with pytest.raises(InputError, match="stranger"):
        bundle.build()


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: not a model \(no such folder\); expected a bundle folder"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a model \(no bundle\.json in it\)"):
        load_bundle(tmp_path)


def test_saving_replaces_a_bundle_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    before = load_bundle(folder).sha256
    save_bundle(folder, tiny_model(seed=1), ADAPTER)
    assert load_bundle(folder).sha256 != before
    other = tmp_path / "pictures"
    other.mkdir()
    (other / "cat.png").write_text("meow")
    with pytest.raises(InputError, match="pictures: exists and is not a bundle"):
        save_bundle(other, tiny_model(), ADAPTER)
    assert [p.name for p in other.iterdir()] == ["cat.png"]


def test_a_failing_save_leaves_the_old_bundle_and_no_temporary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (folder / name).read_bytes() for name in (DESCRIPTION, WEIGHTS)}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match="crowns: cannot write the model here: No space left on device"):
        save_bundle(folder, tiny_model(seed=1), ADAPTER)
    monkeypatch.undo()
    monkeypatch.setattr("pathlib.Path.rename", rename_failing_for("bundle"))
    with pytest.raises(InputError, match="cannot write the model here"):
        save_bundle(folder, tiny_model(seed=1), ADAPTER)
    assert {name: (folder / name).read_bytes() for name in (DESCRIPTION, WEIGHTS)} == before
    assert [p.name for p in folder.parent.iterdir()] == ["crowns"]


def rename_failing_for(name: str) -> Callable[[Path, Path], Path]:
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    return fail


def test_a_model_without_config_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Linear has no ModelConfig"):
        save_bundle(tmp_path / "b", torch.nn.Linear(1, 1), ADAPTER)


def test_inspecting_a_local_bundle_imports_neither_torch_nor_mlflow(folder: Path) -> None:
    code = (
        "import sys; from pipelines.bundle import load_bundle; "
        "load_bundle(sys.argv[1], check_shapes=False); "
        "print(sorted({'torch', 'mlflow', 'prefect', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
