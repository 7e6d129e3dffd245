"""Studies in several processes: the files of one, whoever dies on the way; what executors cannot do is said."""

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters.errors import InputError
from pipelines import cli
from pipelines.volumes import study_pool
from pipelines.volumes.options import VolumeOptions
from pipelines.volumes.studies import BatchRules, predict_studies
from pipelines.volumes.study_pool import Processes, predict_in_processes
from tests.pipelines.volumes.test_studies import CPU, scan, volume_bundle

OPTIONS = VolumeOptions(device="cpu", precision="fp32", score=0.0)
TWO = Processes(2, 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volume_bundle(tmp_path_factory.mktemp("model") / "bundle")


def digests(out: Path) -> dict[str, str]:
    names = ("labels.nii.gz", "objects.nii.gz", "objects.csv")
    return {
        f"{folder.name}/{name}": hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for folder in sorted(out.glob("study-*"))
        for name in names
    }


class DyingPipe:
    """The pipe of a worker that is killed when it is given study `deadly`."""

    def __init__(self, pipe: Any, deadly: int) -> None:
        self.pipe, self.deadly = pipe, deadly

    def recv(self) -> int:
        place: int = self.pipe.recv()
        if place == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return place

    def send(self, answer: Any) -> None:
        self.pipe.send(answer)


def serve_but_the_second(pipe: Any, work: Any) -> None:
    study_pool._serve(DyingPipe(pipe, 1), work)


def test_what_executors_of_studies_cannot_do_is_said(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(bundle), "scan.nii.gz", "--out", str(tmp_path / "out")]
    for flags, reason in (
        (["--executor", "dask"], "not sent to a cluster"),
        (["--workers", "2"], "goes with --executor process"),
        (["--executor", "process", "--scheduler", "tcp://host:1"], "--scheduler: only for scenes"),
    ):
        assert cli.run([*words, *flags]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_workers_leave_the_files_of_one(bundle: Path, tmp_path: Path) -> None:
    paths = [scan(tmp_path / f"{k}.nii.gz", k) for k in range(3)]
    paths.insert(1, tmp_path / "gone.nii.gz")
    alone = predict_studies(paths, bundle, tmp_path / "alone", OPTIONS)
    told: list[int] = []
    rules = BatchRules(on_study=lambda row, notes: told.append(row.study))
    batch = predict_in_processes(paths, bundle, tmp_path / "out", OPTIONS, rules, TWO)
    assert [row.status for row in batch.rows] == ["done", "failed", "done", "done"] and batch.exit_code == 3
    assert [(r.study, r.status, r.folder, r.objects, r.reason) for r in batch.rows] == [
        (r.study, r.status, r.folder, r.objects, r.reason) for r in alone.rows
    ]
    assert sorted(told) == [1, 2, 3, 4] and digests(tmp_path / "out") == digests(tmp_path / "alone")
    assert [row["study"] for row in csv.DictReader((tmp_path / "out" / "summary.csv").open())] == list("1234")
    again = predict_in_processes(paths[2:], bundle, tmp_path / "out", OPTIONS, BatchRules(), TWO)
    assert [row.status for row in again.rows] == ["there", "there"]


@pytest.mark.slow
def test_a_study_that_kills_its_worker_costs_no_other(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_pool, "_serve", serve_but_the_second)
    paths = [scan(tmp_path / f"{k}.nii.gz", k) for k in range(3)]
    batch = predict_in_processes(paths, bundle, tmp_path / "out", OPTIONS, BatchRules(), TWO)
    assert [row.status for row in batch.rows] == ["done", "failed", "done"]
    assert "died 2 times (signal 9)" in batch.rows[1].reason and "memory" in batch.rows[1].reason


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_batch_at_once(tmp_path: Path) -> None:
    paths = [scan(tmp_path / f"{k}.nii.gz", k) for k in range(2)]
    with pytest.raises(InputError, match="no such"):
        predict_in_processes(paths, tmp_path / "no such", tmp_path / "out", OPTIONS, BatchRules(), TWO)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_and_leaves_whole_studies_only(bundle: Path, tmp_path: Path) -> None:
    paths = [scan(tmp_path / "0.nii.gz"), *(scan(tmp_path / f"{k}.nii.gz", k, (160, 160, 150)) for k in (1, 2))]
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    flags = ["--out", str(out), *CPU, "--score", "0", "--executor", "process", "--threads", "1"]
    command = [sys.executable, "-m", "pipelines.cli", "predict", str(bundle), *map(str, paths), *flags]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    running = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(1200):
        if list(out.glob("study-*/run.json")):
            break
        time.sleep(0.05)
    time.sleep(1.0)  # into the others
    workers = [p for p in psutil.Process(running.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    os.killpg(running.pid, signal.SIGINT)  # as a terminal sends it: to all of them
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "interrupted" in errors and "Traceback" not in errors, errors
    assert len(workers) == 2 and not any(worker.is_running() for worker in workers)
    assert sorted(p.name[:5] for p in out.iterdir()) == ["study", "summa"], list(out.iterdir())
    assert not list(temporary.iterdir()), "what was unpacked is gone"
