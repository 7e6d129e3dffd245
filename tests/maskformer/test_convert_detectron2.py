"""FAIR's own checkpoints: every published key, the numbers of transformers, and no code that a pickle brings along."""

import math
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskformer import convert
from maskformer.config import ModelConfig
from tests.maskformer import published, published_names

SMALL: dict[str, Callable[[], nn.Module]] = {
    "maskformer-swin": lambda: published.maskformer(published.swin()),
    "maskformer-resnet": lambda: published.maskformer(published.resnet()),
    "mask2former-swin": lambda: published.mask2former(published.swin()),
    "mask2former-resnet": lambda: published.mask2former(published.resnet()),
}
# Shapes, our preset's fields for them, and millions of parameters as measured elsewhere (None: not known).
PUBLISHED = {
    "maskformer-resnet50": (lambda: published_names.maskformer("resnet50", 150), 41.3),
    "maskformer-resnet50-panoptic": (lambda: published_names.maskformer("resnet50", 133, encoder=True), None),
    "maskformer-swin-tiny": (lambda: published_names.maskformer("swin-tiny", 150), 41.8),
    "mask2former-resnet50": (lambda: published_names.mask2former("resnet50", 150), 44.0),
    "mask2former-swin-tiny": (lambda: published_names.mask2former("swin-tiny", 150), 47.4),
}


def save_pickle(path: Path, weights: dict[str, Tensor], protocol: int | None = None) -> Path:
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    payload = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(payload, protocol=protocol))
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return published.to_detectron2(SMALL["maskformer-resnet"]())


@pytest.mark.parametrize("name", SMALL)
def test_the_route_over_fairs_names_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = SMALL[name]()
    ours = convert.from_detectron2(save_pickle(tmp_path / "model.pkl", published.to_detectron2(theirs)))
    picture = torch.randn(1, 3, 160, 230, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = theirs(pixel_values=picture), ours(picture)
    assert expected.masks_queries_logits.std() > 0.5
    torch.testing.assert_close(found.class_logits, expected.class_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.mask_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_key_and_shape_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, millions = PUBLISHED[name]
    shapes = make()
    left_over = {n for n in shapes if n == "criterion.empty_weight" or n.endswith("relative_position_index")}
    learned = [n for n in shapes if n not in left_over and "running" not in n]
    if millions is not None:
        assert sum(math.prod(shapes[n]) for n in learned) / 1e6 == pytest.approx(millions, abs=0.06)
    # One number a tensor, expanded, so that each can be told. A file with such tensors is refused: hand them over.
    values = {n: torch.tensor([index / 7]) for index, n in enumerate(shapes)}
    monkeypatch.setattr(convert, "load_weights", lambda _: {n: values[n].expand(shapes[n]) for n in shapes})
    model = convert.from_detectron2("model.pth")
    account = model.conversion
    assert set(account.left_over) == left_over
    assert all(n.endswith("num_batches_tracked") for n in account.fresh)
    found = model.state_dict()
    loaded = sorted(found[n].flatten()[0].item() for n in account.loaded)
    assert loaded == sorted(value.item() for n, value in values.items() if n not in left_over)
    assert model.config == ModelConfig.from_preset(name)  # backbone to losses


def test_heads_of_the_first_version_load(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Their pixel decoder is named without `pixel_decoder.`."""
    old = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): tensor for name, tensor in weights.items()}
    assert old.keys() != weights.keys()
    found = convert.from_detectron2(save_pickle(tmp_path / "old.pkl", old)).state_dict()
    expected = convert.from_detectron2(save_pickle(tmp_path / "new.pkl", weights)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_static_query_is_query_feat(tmp_path: Path) -> None:
    theirs = published.to_detectron2(SMALL["mask2former-resnet"]())
    old = {name.replace("query_feat", "static_query"): tensor for name, tensor in theirs.items()}
    assert old.keys() != theirs.keys()
    model = convert.from_detectron2(save_pickle(tmp_path / "old.pkl", old))
    found = model.state_dict()["query_decoder.query_feat.weight"]
    assert torch.equal(found, theirs["sem_seg_head.predictor.query_feat.weight"])


def test_what_the_file_knows_of_its_input_comes_over(weights: dict[str, Tensor], tmp_path: Path) -> None:
    plain = convert.from_detectron2(save_pickle(tmp_path / "plain.pkl", weights)).conversion
    assert plain.mean == (123.675, 116.28, 103.53) and plain.std == (58.395, 57.12, 57.375)
    stated = {"pixel_mean": torch.tensor([1.0, 2.0, 3.0])[:, None, None], "pixel_std": torch.full((3, 1, 1), 4.0)}
    account = convert.from_detectron2(save_pickle(tmp_path / "stated.pkl", weights | stated)).conversion
    assert account.mean == (1.0, 2.0, 3.0) and account.std == (4.0, 4.0, 4.0)
    assert {"pixel_mean", "pixel_std"} <= set(account.left_over)


def test_r101c_is_refused_with_the_reason(weights: dict[str, Tensor], tmp_path: Path) -> None:
    deep = weights | {"backbone.stem.conv2.weight": torch.zeros(64, 64, 3, 3)}
    with pytest.raises(ValueError, match="its backbone is R101c"):
        convert.from_detectron2(save_pickle(tmp_path / "r101c.pkl", deep))


def test_other_checkpoints_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    other = {name: tensor for name, tensor in weights.items() if "predictor" not in name}
    with pytest.raises(ValueError, match="not a MaskFormer or Mask2Former"):
        convert.from_detectron2(save_pickle(tmp_path / "other.pkl", other))
    stranger = weights | {"backbone.extra.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"have no place here: backbone\.extra\.weight"):
        convert.from_detectron2(save_pickle(tmp_path / "stranger.pkl", stranger))
    lacking = {name: tensor for name, tensor in weights.items() if name != "sem_seg_head.predictor.class_embed.bias"}
    with pytest.raises(ValueError, match=r"missing in the checkpoint: query_decoder\.class_embed\.bias"):
        convert.from_detectron2(save_pickle(tmp_path / "lacking.pkl", lacking))


# ------------------------------------------------------------------------------------------------ reading pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_arrays_of_any_protocol_and_numpy_are_read(module: str, protocol: int, tmp_path: Path) -> None:
    from maskformer.conversion.weight_files import load_weights

    arrays = OrderedDict(
        matrix=np.arange(6, dtype=np.float32).reshape(2, 3),
        columns=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        count=np.array(3),
        scalar=np.float32(1.5),
        mask=np.array([True, False]),
    )
    content = pickle.dumps({"model": arrays}, protocol=protocol, fix_imports=False)
    current = np.empty(0).__reduce__()[0].__module__.removesuffix(".multiarray").encode()
    if protocol < 4:  # later ones count the bytes of their words
        content = content.replace(current, module.encode())
    (tmp_path / "arrays.pkl").write_bytes(content)
    found = load_weights(tmp_path / "arrays.pkl")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)


class Payload:
    """Runs a command where a pickle is believed."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(marker: Path) -> dict[str, Any]:
    command = f"touch {marker}"
    in_an_array = np.empty(1, dtype=object)
    in_an_array[0] = Payload(os.system, command)
    return {
        "os.system": Payload(os.system, command),
        "eval": Payload(eval, f"__import__('os').system({command!r})"),
        "exec": Payload(exec, f"import os; os.system({command!r})"),
        "among tensors": {"model": {"a": np.zeros(2), "b": Payload(os.system, command)}},
        "in an array of objects": {"model": {"a": in_an_array}},
    }


@pytest.mark.parametrize("kind", hostile(Path()))
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_hostile_file_is_refused_and_runs_nothing(kind: str, suffix: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "was_here", tmp_path / f"model{suffix}"
    payload = hostile(marker)[kind]
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path)
    with pytest.raises(ValueError, match=f"model{suffix}: refused"):
        convert.from_detectron2(path)
    assert not marker.exists()


def test_the_payload_would_have_run(tmp_path: Path) -> None:
    """The test above proves something only where an ordinary unpickler does run it."""
    pickle.loads(pickle.dumps(hostile(tmp_path / "was_here")["os.system"]))
    assert (tmp_path / "was_here").exists()


def test_a_hostile_pytorch_model_bin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "maskformer"}')
    torch.save(hostile(tmp_path / "was_here")["os.system"], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: refused"):
        convert.from_transformers(tmp_path)
    assert not (tmp_path / "was_here").exists()


def test_a_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Payload(os.system, "true")))
    with pytest.raises(ValueError, match=r"it asks for (posix|nt)\.system; a checkpoint needs numpy arrays"):
        convert.from_detectron2(path)


@pytest.mark.parametrize(
    "value",
    [np.array(["words"]), np.array([None]), np.array([1], "datetime64[s]"), np.zeros(1, [("a", "f4")]), np.dtype("O")],
    ids=["words", "objects", "dates", "fields", "a type"],
)
def test_arrays_of_other_things_than_numbers_are_refused(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": value}}))
    with pytest.raises(ValueError, match=r"model\.pkl: refused: it asks for values of type"):
        convert.from_detectron2(path)


def test_a_pickle_cannot_change_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"cnumpy\nndarray\n(dVmake\nNsb.")  # sets an attribute on what stands in for numpy.ndarray
    with pytest.raises(ValueError, match="asks to change"):
        convert.from_detectron2(path)


def test_a_pickle_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Payload(np.ndarray, (2**50,))}}))
    with pytest.raises(ValueError, match=r"model\.pkl"):
        convert.from_detectron2(path)


def test_broken_files_are_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = save_pickle(tmp_path / "model.pkl", weights)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"model\.pkl: (not a pickle|refused)"):
        convert.from_detectron2(path)
    torch.save(weights, tmp_path / "model.pth")
    (tmp_path / "model.pth").write_bytes((tmp_path / "model.pth").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.pth: (not a checkpoint|refused)"):
        convert.from_detectron2(tmp_path / "model.pth")
    for name, content in (("empty.pkl", b""), ("text.pkl", b"hello"), ("text.pth", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            convert.from_detectron2(tmp_path / name)
    for name, value in (("list", [1, 2]), ("words", {"model": {"a": "b"}})):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(ValueError, match=f"{name}.pkl"):
            convert.from_detectron2(tmp_path / f"{name}.pkl")
    with pytest.raises(ValueError, match="No such file"):
        convert.from_detectron2(tmp_path / "nothing.pkl")
