"""Weight files made to take memory or time, or damaged: one line that names the file, and little of either."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskformer import convert
from maskformer.conversion import pickle_check
from maskformer.conversion.weight_files import load_weights
from tests.maskformer import published

# ------------------------------------------------------------------------------------------------------ pickles


def nested(depth: int) -> bytes:
    """{((((...)))): 1}: a key whose hash runs that deep."""
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."


def doubled(times: int) -> bytes:
    """A list of two, each a list of the same two, ...: 2**times of them."""
    number = [bytes([n]) for n in range(times + 1)]
    step = (b"]q" + number[n + 1] + b"(h" + number[n] + b"h" + number[n] + b"e" for n in range(times))
    return b"\x80\x02]q\x00" + b"".join(step) + b"."


def repeated(content: int, times: int) -> bytes:
    """The same bytes in many places: each array of them is a copy."""
    return b"\x80\x04B" + struct.pack("<I", content) + bytes(content) + b"\x94(" + b"h\x00" * times + b"t."


def holds_itself() -> bytes:
    return b"\x80\x02]q\x00h\x00a."


BOMBS = {
    "nested": (nested(150_000), "nests more than"),
    "nested by lists": (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "nests more than"),
    "doubled": (doubled(60), "unfold to more than|nests more than"),
    "repeated": (repeated(1 << 20, 1000), "would unfold to more than"),
    "holds itself": (holds_itself(), "holds itself"),
    "a long table of references": (b"\x80\x02]r\xff\xff\xff\x7f.", "numbers a value 2147483647"),
    "an instruction nobody needs": (b"\x80\x02" + b"N0" * 10 + b".", "uses the instruction POP"),
    "too many instructions": (b"\x80\x02(" + b"N" * 200_001 + b"t.", "more than 200000 instructions"),
    "an extension": (b"\x80\x02\x82\x01.", "uses the instruction EXT1"),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_pickles_made_to_burst_are_refused_before_they_are_read(kind: str, suffix: str, tmp_path: Path) -> None:
    content, complaint = BOMBS[kind]
    path = tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        path.write_bytes(content)
    else:
        archive(path, content)
    with pytest.raises(ValueError, match=rf"model\{suffix}: refused: it .*({complaint})") as caught:
        load_weights(path)
    assert len(str(caught.value)) < 500


def test_the_check_does_not_run_what_it_reads() -> None:
    """Only ids and names come out, in the order they are asked for."""
    asked = pickle_check.check(io.BytesIO(pickle.dumps([np.zeros(2), np.float32(1)], protocol=2)), 1000)
    assert "numpy.dtype" in asked.globals and asked.persistent == []


def test_names_that_share_an_array_are_read(tmp_path: Path) -> None:
    weight = np.arange(6.0, dtype=np.float32)
    path = tmp_path / "tied.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": weight, "b": weight, "meta": np.array(1)}, "list": [1, [2]]}))
    found = load_weights(path)
    assert torch.equal(found["a"], torch.from_numpy(weight)) and torch.equal(found["a"], found["b"])


def test_many_names_of_one_array_are_refused(tmp_path: Path) -> None:
    path, weight = tmp_path / "shared.pkl", np.zeros(1 << 17, np.float32)
    path.write_bytes(pickle.dumps({f"w{n}": weight for n in range(20)}))
    with pytest.raises(ValueError, match=r"shared\.pkl: refused: .*unfold"):
        load_weights(path)


# ------------------------------------------------------------------------------------------------- torch.save


def archive(
    path: Path, content: bytes, members: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", b"3\n")
        for name, value in (members or {}).items():
            file.writestr(f"archive/{name}", value)
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes], method: int) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_claim_more_than_is_stored_are_refused(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "claims.pth"
    huge = torch.zeros(1).expand(1 << 40)
    torch.save({"model": {"a": torch.ones(3), "b": huge}}, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 5000
    with pytest.raises(ValueError, match=r"claims\.pth: b: refused: its shape \(1099511627776,\) claims"):
        load_weights(path)


def test_many_views_of_one_storage_are_refused(tmp_path: Path) -> None:
    path, storage = tmp_path / "views.pth", torch.zeros(1 << 17)
    torch.save({f"w{n}": storage.view(-1) for n in range(20)}, path)
    with pytest.raises(ValueError, match=r"views\.pth: refused: its tensors claim 10485760 bytes"):
        load_weights(path)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    squeezed = rewritten(
        tmp_path / "plain.pth", tmp_path / "bomb.pth", lambda _, content: content, zipfile.ZIP_DEFLATED
    )
    assert squeezed.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"bomb\.pth: refused: its member .* is compressed"):
        load_weights(squeezed)


def test_a_storage_shorter_than_the_pickle_says_is_refused(tmp_path: Path) -> None:
    """torch would read on behind its end."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "plain.pth")

    def cut(name: str, content: bytes) -> bytes:
        return content[:16] if name.endswith("data/0") else content

    path = rewritten(tmp_path / "plain.pth", tmp_path / "short.pth", cut, zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=r"short\.pth: refused: it wants 1000 numbers of the 16 bytes in plain/data/0"):
        load_weights(path)


def test_the_format_before_zip_files_is_read_and_checked(tmp_path: Path) -> None:
    path, weights = tmp_path / "old.pth", {"a": torch.arange(5.0), "b": torch.tensor([1, 2])}
    torch.save({"model": weights}, path, _use_new_zipfile_serialization=False)
    found = load_weights(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    path.write_bytes(path.read_bytes().replace(b"K\x05", b"K\xff"))  # five numbers become 255
    with pytest.raises(ValueError, match=r"old\.pth: refused: it wants \d+ bytes of storage"):
        load_weights(path)


@pytest.mark.parametrize(
    "value", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")], ids=["sparse", "meta"]
)
def test_only_plain_tensors_are_taken(value: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"a": value}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth"):
        load_weights(tmp_path / "odd.pth")


def test_every_kind_of_file_has_one_reader(tmp_path: Path) -> None:
    weights = {"a.weight": torch.randn(3, 4), "a.count": torch.tensor(7)}
    save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.bin")
    torch.save({"model": weights, "iteration": 3, "optimizer": {"betas": (0.9, 0.99)}}, tmp_path / "w.pth")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in weights.items()}))
    for suffix in ("safetensors", "bin", "pth", "pkl"):
        found = load_weights(tmp_path / f"w.{suffix}")
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items()), suffix


# ----------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "mask2former"
    published.mask2former(published.swin()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def swin_with(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**json.loads((folder / "config.json").read_text())["backbone_config"], **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone_config": [1, 2]},
        {"backbone_config": {"model_type": "swin", "depths": 3}},
        {"backbone_config": {"model_type": "swin", "depths": ["a", 2, 3, 4]}},
        {"id2label": [1, 2]},
        {"id2label": {"x": "y"}},
        {"hidden_dim": "wide"},
        {"hidden_dim": None},
        {"num_attention_heads": 0},
        {"feature_size": -4},
        {"decoder_layers": 10**7},
        {"encoder_layers": 10**7},
        {"hidden_dim": 2**62},
        {"mask_feature_size": 2**40},
        {"num_queries": 1e9},
        {"dropout": "much"},
    ],
    ids=str,
)
def test_a_config_of_nonsense_is_one_line_with_its_folder(changes: dict[str, Any], folder: Path) -> None:
    edit(folder, **changes)
    for wanted in ({}, {"num_queries": 3}):
        with pytest.raises(ValueError) as caught:
            convert.from_transformers(folder, **wanted)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("embed_dim", [0, -16, 2**40, "16"])
def test_a_backbone_of_nonsense_is_one_line_with_its_folder(embed_dim: Any, folder: Path) -> None:
    edit(folder, backbone_config=swin_with(folder, embed_dim=embed_dim))
    with pytest.raises(ValueError) as caught:
        convert.from_transformers(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "processor", ["[]", '{"size": [1], "image_mean": ["x"]}', '{"rescale_factor": 0, "image_mean": [1]}']
)
def test_a_processor_of_nonsense_is_one_line_or_says_nothing(processor: str, folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(processor)
    with pytest.raises(ValueError) as caught:
        convert.from_transformers(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["bin", "pth", "pkl", "safetensors"])
def test_files_with_any_byte_changed_are_read_or_named(suffix: str, tmp_path: Path) -> None:
    """Eighty damaged copies of a small file of each kind: tensors, or ValueError with the path in one line."""
    weights = {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(2)}
    path = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(weights, path)
    elif suffix == "pkl":
        path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in weights.items()}))
    else:
        torch.save(weights, path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    read = 0
    for number in range(80):
        content = bytearray(whole)
        if number % 4 == 0:
            content = content[: random.integers(len(whole))]
        else:
            content[random.integers(len(whole))] = random.integers(256)
        path.write_bytes(content)
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in load_weights(path).values())
            read += 1
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert read < 80


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layernorm.weight") or name.endswith("norm.weight"))
    weights[name][0] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors hold NaN or infinite values: .*norm.*\.weight"):
        convert.from_transformers(folder)


def test_all_nan_names_the_first_and_counts_the_rest(folder: Path) -> None:
    weights = {name: tensor * float("nan") for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"\d\d+ tensors hold NaN or infinite values: \w+.* and \d+ more") as caught:
        convert.from_transformers(folder)
    assert str(folder) in str(caught.value)


def test_large_finite_weights_are_not_taken_for_infinite(folder: Path) -> None:
    """Their sum overflows, they do not."""
    from maskformer.conversion.weight_files import check_finite

    check_finite({"a": torch.full((4,), 3e38)}, "file")
    with pytest.raises(ValueError, match="file: 1 tensors hold NaN"):
        check_finite({"a": torch.tensor([float("inf"), -float("inf")])}, "file")


def test_whole_numbers_in_place_of_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("norm.weight"))
    weights[name] = weights[name].to(torch.int8)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 tensors of another kind of number: .* is torch\.int8"):
        convert.from_transformers(folder)


@pytest.mark.parametrize("shape", [(), (3,), (0, 0), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ["query_embed.weight", "class_embed.weight", "mask_features.weight"])
def test_shapes_of_nonsense_are_one_line_with_their_file(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    weights = published.to_detectron2(published.maskformer(published.resnet()))
    full = next(one for one in weights if one.endswith(name))
    path = tmp_path / "model.pth"
    torch.save({**weights, full: torch.zeros(shape)}, path)
    with pytest.raises(ValueError) as caught:
        convert.from_detectron2(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
