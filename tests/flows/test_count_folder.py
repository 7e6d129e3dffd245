"""The sweep counts what is new, says what it could not count, and two at once lose nothing."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapters.crowd import crowd
from flows.count_folder import count_folder
from pipelines.config import PredictOptions
from pipelines.count_pictures import count_pictures
from tests.models import tiny_bundle

OPTIONS = PredictOptions(tile=64, overlap=16, score=0.05, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", crowd(tile=64, tile_overlap=16))


def photo(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 80, 3)).astype(np.uint8)).save(path)


def sweep(bundle: Path, folder: Path, out: Path):
    state = count_folder(str(bundle), str(folder), str(out), OPTIONS, return_state=True)
    assert state.is_completed(), state
    return state.name, state.result()


def test_a_sweep_counts_what_is_new(bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    assert sweep(bundle, folder, out)[1]["pictures"] == 0, "an empty folder is no failure"
    photo(folder / "a.png", 0)
    assert sweep(bundle, folder, out)[1]["fresh"] == 1
    by_command = count_pictures(bundle, folder, tmp_path / "command", OPTIONS)
    assert (out / "counts.csv").read_bytes() == (by_command.out / "counts.csv").read_bytes(), "the command's bytes"
    photo(folder / "b.png", 1)
    (folder / "empty.jpg").write_bytes(b"")
    name, result = sweep(bundle, folder, out)
    assert name == "Partial" and result["fresh"] == 1 and result["pictures"] == 2
    assert list(result["failed"]) == ["empty.jpg"]
    assert len((out / "counts.csv").read_text().splitlines()) == 3


def test_two_at_once_count_every_picture_once(bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for number in range(4):
        photo(folder / f"{number}.png", number)
    runs = []
    both = [
        threading.Thread(target=lambda: runs.append(count_pictures(bundle, folder, out, OPTIONS))) for _ in range(2)
    ]
    [thread.start() for thread in both]
    [thread.join() for thread in both]
    assert sorted(run.fresh for run in runs) == [0, 4]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["0", "1", "2", "3"]
