import pickle
import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from adapters.errors import InputError
from pipelines import checkpoints

STATE = {"step": 3, "model": {"weight": torch.arange(6.0).reshape(2, 3)}, "history": [{"loss": 0.5}], "none": None}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / checkpoints.NAME
    checkpoints.save(path, STATE)
    back = checkpoints.load(path)
    assert torch.equal(back["model"]["weight"], STATE["model"]["weight"])
    assert (back["step"], back["history"], back["none"]) == (3, [{"loss": 0.5}], None)
    assert [item.name for item in tmp_path.iterdir()] == [checkpoints.NAME]


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    """A real refusal of the system: no file may grow over 64 KiB."""
    path = tmp_path / checkpoints.NAME
    checkpoints.save(path, STATE)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        with pytest.raises(InputError, match=r"checkpoint\.pt: checkpoint could not be written"):
            checkpoints.save(path, {"model": torch.zeros(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [checkpoints.NAME]


def test_missing_folder_and_missing_file_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written"):
        checkpoints.save(tmp_path / "no" / checkpoints.NAME, STATE)
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        checkpoints.load(tmp_path / checkpoints.NAME)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped byte"])
def test_damage_is_seen(tmp_path: Path, damage: str) -> None:
    path = tmp_path / checkpoints.NAME
    checkpoints.save(path, {"weight": torch.arange(4096.0)})
    content = bytearray(path.read_bytes())
    if damage == "flipped byte":
        content[len(content) // 2] ^= 1  # in the middle of the weights
    path.write_bytes({"empty": b"", "text": b"weights", "cut": content[:-100]}.get(damage, bytes(content)))
    with pytest.raises(InputError, match=r"checkpoint\.pt: (not a checkpoint|damaged checkpoint)"):
        checkpoints.load(path)


class Payload:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("ran"),))


def test_no_code_runs_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / checkpoints.NAME
    torch.save({"format": checkpoints.FORMAT, "model": Payload()}, path)
    with pytest.raises(InputError, match="not a checkpoint"):
        checkpoints.load(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match="not a checkpoint"):
        checkpoints.load(path)
    assert not Path("ran").exists()


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / checkpoints.NAME
    torch.save({"format": 99}, path)
    with pytest.raises(InputError, match="format 99, expected 1"):
        checkpoints.load(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="format None"):
        checkpoints.load(path)


def test_fingerprint_names_what_differs(tmp_path: Path) -> None:
    stored = {"model": "a" * 64, "data": "b" * 64, "options": {"batch": 2, "seed": 0}}
    checkpoints.check_fingerprint(tmp_path, stored, stored)
    for change, message in (
        ({"model": "c" * 64}, "another model"),
        ({"data": "c" * 64}, "another data"),
        ({"options": {"batch": 4, "seed": 0}}, r"train\.batch was 2, now 4"),
        ({"options": {"batch": 2, "seed": 0, "new": 1}}, r"train\.new was None, now 1"),
    ):
        with pytest.raises(InputError, match=message):
            checkpoints.check_fingerprint(tmp_path, stored, {**stored, **change})


def test_model_fingerprint_is_of_the_structure() -> None:
    def make(width: int) -> nn.Module:
        return nn.Linear(2, width)

    assert checkpoints.model_fingerprint(make(3)) == checkpoints.model_fingerprint(make(3))
    assert checkpoints.model_fingerprint(make(3)) != checkpoints.model_fingerprint(make(4))
    assert checkpoints.model_fingerprint(make(3)) != checkpoints.model_fingerprint(make(3).half())
