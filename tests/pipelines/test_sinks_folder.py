"""All or nothing: commits, collisions, failures, full disks and killed processes."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adapters.errors import InputError
from pipelines.sinks import folder as module
from pipelines.sinks.folder import OutputFolder, alone_in, atomic_write, sha256


def tree(root: Path) -> dict[str, str]:
    """Every file below root with its content, empty folders as well."""
    return {str(p.relative_to(root)): p.read_text() if p.is_file() else "/" for p in sorted(root.rglob("*"))}


def write(out: Path, stem: str, text: str, **options: bool) -> Path:
    with OutputFolder(out, stem, **options) as output:
        (output.path / "run.json").write_text(text)
        assert not (out / stem / "run.json").exists() or (out / stem / "run.json").read_text() != text
        return output.commit()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_equal_stems_get_a_suffix(tmp_path: Path) -> None:
    names = [write(tmp_path / "a/b", "scene", str(i)).name for i in range(3)]
    assert names == ["scene", "scene-2", "scene-3"]
    assert [p.read_text() for p in sorted((tmp_path / "a/b").glob("*/run.json"))] == ["0", "1", "2"]


def test_overwrite_replaces_at_commit_only(tmp_path: Path) -> None:
    write(tmp_path, "scene", "old")
    (tmp_path / "scene" / "extra.txt").write_text("of the old run")
    with OutputFolder(tmp_path, "scene", overwrite=True) as output:
        (output.path / "run.json").write_text("new")
        assert (tmp_path / "scene" / "run.json").read_text() == "old"
        assert output.commit() == tmp_path / "scene"
    assert tree(tmp_path) == {"scene": "/", "scene/run.json": "new"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failing_run_leaves_no_trace(tmp_path: Path, overwrite: bool) -> None:
    write(tmp_path, "scene", "old")
    before = tree(tmp_path)
    with pytest.raises(RuntimeError, match="boom"), OutputFolder(tmp_path, "scene", overwrite) as output:
        (output.path / "big").write_text("half")
        raise RuntimeError("boom")
    assert tree(tmp_path) == before


def test_a_failing_run_takes_back_the_folders_it_made(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path / "new/deep", "scene"):
        raise KeyboardInterrupt
    assert tree(tmp_path) == {}


def test_without_commit_nothing_appears(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, "scene") as output:
        (output.path / "x").write_text("y")
    assert tree(tmp_path) == {}


def test_two_runs_of_one_stem_at_once(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, "scene") as one, OutputFolder(tmp_path, "scene") as two:
        (one.path / "who").write_text("one")
        (two.path / "who").write_text("two")
        assert two.commit().name == "scene"
        assert one.commit().name == "scene-2"
    assert (tmp_path / "scene" / "who").read_text() == "two"


def test_a_swap_that_fails_puts_the_old_output_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "scene", "old")
    before, rename = tree(tmp_path), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with (
        pytest.raises(InputError, match="Input/output"),
        OutputFolder(tmp_path, "scene", overwrite=True) as o,
    ):
        o.commit()
    assert tree(tmp_path) == before


def test_files_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(InputError, match="file"), OutputFolder(out, "scene"):
            pass
    with (
        pytest.raises(InputError, match="a file is in the way"),
        OutputFolder(tmp_path, "file", overwrite=True),
    ):
        pass
    assert write(tmp_path, "file", "x").name == "file-2"
    with pytest.raises(InputError, match="a folder is in the way"), atomic_write(tmp_path / "file-2"):
        pass
    with pytest.raises(InputError, match="a file is in the way"), atomic_write(tmp_path / "file" / "x"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        out = Path("/proc/self")  # root may write anywhere but here
    else:
        tmp_path.chmod(0o500)
        out = tmp_path
    with pytest.raises(InputError, match=f"^{out}: cannot write here"), OutputFolder(out, "scene"):
        pass
    message = f"^{out / 'scene.tif'}: cannot write here"
    with pytest.raises(InputError, match=message), atomic_write(out / "scene.tif") as path:
        path.write_text("x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk(tmp_path: Path) -> None:
    write(tmp_path, "scene", "old")
    before = tree(tmp_path)
    full = Path("/dev/full")
    message = f"^{tmp_path}: the disk is full"
    with pytest.raises(InputError, match=message), OutputFolder(tmp_path, "scene", overwrite=True) as output:
        (output.path / "half").write_text("half")
        full.write_text("more")
    message = r"run\.json: the disk is full"
    with pytest.raises(InputError, match=message), atomic_write(tmp_path / "run.json") as path:
        path.write_text("half")
        full.write_text("more")
    assert tree(tmp_path) == before


def test_an_error_never_shows_the_hidden_name(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=rf"^{tmp_path}/scene/semantic\.tif: broken$"),
        OutputFolder(tmp_path, "scene") as output,
    ):
        raise InputError(f"{output.path}/semantic.tif: broken")


def test_full_disk_behind_an_error_without_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL says "write error"; the room left on the disk says why."""
    monkeypatch.setattr(module, "NO_ROOM_BYTES", 1 << 62)
    with pytest.raises(InputError, match="the disk is full"), OutputFolder(tmp_path, "scene"):
        raise RuntimeError("TIFFAppendToStrip: write error")


def test_what_killed_processes_left_is_cleaned(tmp_path: Path) -> None:
    write(tmp_path, "scene", "old")
    with OutputFolder(tmp_path, "scene") as output:
        partial = output.path.name
    dead = tmp_path / partial.replace(f"-{os.getpid()}-", f"-{dead_pid()}-")
    dead.mkdir()
    (dead / "half.tif").write_text("half")
    alive = tmp_path / partial.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    alive.mkdir()
    other = tmp_path / dead.name.replace(".scene.", ".other.")
    other.mkdir()
    assert write(tmp_path, "scene", "new").name == "scene-2"
    assert not dead.exists()
    assert alive.exists() and other.exists()


def test_an_output_lost_in_a_killed_swap_is_put_back(tmp_path: Path) -> None:
    write(tmp_path, "scene", "old")
    with OutputFolder(tmp_path, "scene") as output:
        name = output.path.name.replace("partial", "replaced").replace(f"-{os.getpid()}-", f"-{dead_pid()}-")
    (tmp_path / "scene").rename(tmp_path / name)
    with OutputFolder(tmp_path, "scene", overwrite=True):
        assert (tmp_path / "scene" / "run.json").read_text() == "old"
    assert tree(tmp_path) == {"scene": "/", "scene/run.json": "old"}


@pytest.mark.parametrize("stem", ["[a]*?", "x" * 240, "ü" * 120, "-rf", "a b.c"])
def test_odd_names(tmp_path: Path, stem: str) -> None:
    assert write(tmp_path, stem, "1").name == stem
    with atomic_write(tmp_path / f"{stem}.txt") as path:
        path.write_text("2")
    assert (tmp_path / f"{stem}.txt").read_text() == "2"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("stem", ["", ".", "..", "a/b"])
def test_names_that_leave_the_folder(tmp_path: Path, stem: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        OutputFolder(tmp_path, stem)


def test_atomic_write_keeps_the_old_file_on_error(tmp_path: Path) -> None:
    target = tmp_path / "new" / "table.gpkg"
    with pytest.raises(RuntimeError), atomic_write(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert tree(tmp_path) == {}
    with atomic_write(target) as path:
        assert path.suffix == ".gpkg" and path.parent == target.parent
        path.write_text("whole")
    with pytest.raises(RuntimeError), atomic_write(target) as path:
        path.write_text("half")
        path.with_name(path.name + "-journal").write_text("side file")
        raise RuntimeError
    assert tree(tmp_path) == {"new": "/", "new/table.gpkg": "whole"}
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_one_run_at_a_time_in_a_folder_that_each_of_them_makes_and_removes(tmp_path: Path) -> None:
    inside, most = [], []

    def run() -> None:
        with alone_in(tmp_path / "new" / "out"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    for _ in range(10):
        threads = [threading.Thread(target=run) for _ in range(5)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert most == [1] * 50, "as many runs as threads, and never two at once"
    assert not (tmp_path / "new" / "out").exists(), "nothing came of them, so nothing is left"
