"""What is old goes and nothing else: not what is held, registered, young, a result, or behind a link."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from pipelines.retention import (
    REMOVED_TAG,
    RetentionPolicy,
    Stale,
    remove_artifacts,
    remove_file,
    stale_artifacts,
    stale_files,
)
from pipelines.sinks.folder import HOST
from tests.models import adapter, tiny_bundle

DAY_S = 86_400
GONE = 4_000_000  # above the kernel's largest process id


def old(path: Path, days: float) -> Path:
    """Make `path` (a folder where it has no suffix) and everything in it `days` old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.mkdir() if not path.suffix or path.name.startswith(".bundle-") else path.write_bytes(b"12345")
    for one in [*sorted(path.rglob("*"), reverse=True), path] if path.is_dir() else [path]:
        os.utime(one, (time.time() - days * DAY_S,) * 2, follow_symlinks=False)
    return path


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKBRIDGE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def found(policy: RetentionPolicy) -> dict[str, str]:
    return {Path(one.what).name: one.kind for one in stale_files(policy)}


def test_what_dead_runs_left_is_found_and_removed(results: Path, tmp_path: Path) -> None:
    old(results / "scenes/.shards/a-1/shard-0001.npz", 5)
    old(results / "scenes/.shards/a-1", 5)
    old(results / "scenes/.shards/young-2", 1)
    old(results / "scenes/.shards/held-3", 5)
    partial = old(results / f".scene.0123abcd.partial-{HOST}-{GONE}-0", 5)
    file = old(results / f".objects.csv.0123abcd.partial-{HOST}-{GONE}-1.csv", 5)
    mine = old(results / f".scene.0123abcd.partial-{HOST}-{os.getpid()}-0", 5)
    replaced = old(results / f".scene.0123abcd.replaced-{HOST}-{GONE}-0", 5)
    result = old(results / "scenes/a/run.json", 500)
    bundle = old(results / "training/.bundle-x1y2", 5)
    secret = old(tmp_path / "elsewhere/.shards/b-1", 50)
    (results / "link").symlink_to(tmp_path / "elsewhere")
    (results / "scenes/.shards/link").symlink_to(tmp_path / "elsewhere")
    spool = tmp_path / "cache/tracking/run-1"
    old(spool / "events.jsonl", 40)
    old(spool, 40)
    policy = RetentionPolicy()
    with (results / "scenes/.shards/held-3").joinpath("x").open("w"):
        os.utime(results / "scenes/.shards/held-3/x", (0, 0))
        old(results / "scenes/.shards/held-3", 5)
        handle = os.open(results / "scenes/.shards/held-3", os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_SH)
        expected = {
            "a-1": "shards",
            partial.name: "partial",
            file.name: "partial",
            bundle.name: "temporary",
            spool.name: "spool",
        }
        assert found(policy) == expected
        everything = stale_files(policy)
        assert next(one for one in everything if one.kind == "shards").bytes == 5
        assert not remove_file(Stale("shards", str(results / "scenes/.shards/held-3"), 5, 0)), "looked at once more"
        assert all(remove_file(one) for one in everything)
        os.close(handle)
    assert found(policy) == {"held-3": "shards"}, "let go, it may go"
    for kept in (mine, replaced, result, secret, results / "scenes/.shards/young-2"):
        assert kept.exists(), kept


def test_young_things_stay(results: Path) -> None:
    old(results / f".scene.0123abcd.partial-{HOST}-{GONE}-0", 2)
    old(results / f".scene.0123abcd.partial-other_host-{GONE}-0", 2)
    assert found(RetentionPolicy()) == {}
    assert set(found(RetentionPolicy(work=1)).values()) == {"partial"}


def test_files_of_old_runs_go_and_registered_models_stay(results: Path, tmp_path: Path) -> None:
    from pipelines.registry import download, register
    from pipelines.tracking import track
    from pipelines.tracking_store import connect

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    bundle = tiny_bundle(tmp_path / "bundle", adapter())
    (tmp_path / "report.html").write_text("x" * 100)
    with track("plain", uri=uri) as plain:
        plain.artifact(tmp_path / "report.html", "reports")
        plain.metrics({"pq": 0.5})
    with track("champion", uri=uri) as champion:
        champion.artifact(tmp_path / "report.html", "reports")
        register(bundle, "roads", champion)
    client = connect(uri)
    policy = RetentionPolicy(artifacts=90)
    assert stale_artifacts(client, policy) == [], "young"
    then = time.time() + 100 * DAY_S
    (stale,) = stale_artifacts(client, policy, then)
    assert stale.what == plain.run_id and stale.bytes == 100 and 99 < stale.days < 101
    assert remove_artifacts(client, uri, stale)
    assert not remove_artifacts(client, uri, Stale("artifacts", champion.run_id, 100, 0)), "registered in between"
    assert stale_artifacts(client, policy, then) == []
    run = client.get_run(plain.run_id)
    assert run.data.metrics == {"pq": 0.5} and REMOVED_TAG in run.data.tags, "the numbers stay"
    assert not client.list_artifacts(plain.run_id, "reports")
    assert client.list_artifacts(champion.run_id, "reports")
    assert (download("models:/roads/1", uri) / "weights.safetensors").is_file()
