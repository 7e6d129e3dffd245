"""Tracking and the registry on SQLite: what is logged is there, what is registered comes back to the byte."""

import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.remote_sensing import rgb_aerial
from maskformer.config import ModelConfig
from maskformer.model import build_model
from pipelines import registry, tracking
from pipelines.bundle import DESCRIPTION, WEIGHTS, load_bundle, save_bundle
from pipelines.keys import flatten, text, valid_key
from pipelines.model_card import CARD
from pipelines.tracking_store import SQLITE, connect, shown

CONFIG = ModelConfig(
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
SCORES = {"miou": 0.5, "per_class": {"tree": {"iou": 0.25, "ap": None}}}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh store: making one takes MLflow 2 s, so the tests copy it."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(SQLITE + str(file))
    return file


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SQLITE + str(tmp_path / "mlflow.db"))
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    return tracking.default_uri()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "crowns", seed=0)


def make_bundle(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    adapter = rgb_aerial(ClassSet((Class("tree", "thing", ("Tree",), "#00aa00"),)))
    return save_bundle(folder, build_model(CONFIG), adapter, metrics=SCORES)


def logged(uri: str, run_id: str) -> Any:
    return connect(uri).get_run(run_id)


# --- addresses ---------------------------------------------------------------------------------------------


def test_default_uri_is_the_environment_s_else_a_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.default_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking.default_uri() == "http://tracker:5000"


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@db:5432/mlflow") == "postgresql://***@db:5432/mlflow"
    assert shown("sqlite:////home/me@x/mlflow.db") == "sqlite:////home/me@x/mlflow.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///data/mlruns"])
def test_a_folder_is_no_store(uri: str) -> None:
    with pytest.raises(InputError, match="MLflow keeps no runs in a folder"):
        connect(uri)


def test_a_dead_server_is_one_clear_line_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(InputError) as caught, tracking.track("x", uri=f"http://me:pw@127.0.0.1:{port}", required=True):
        pass
    assert time.monotonic() - began < 2
    message = str(caught.value)
    assert re.match(rf"http://\*\*\*@127\.0\.0\.1:{port}: the MLflow server does not answer \(.*refused\)", message)
    assert "\n" not in message and "pw@" not in message


def test_a_server_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking_store.PROBE_S", 0.3)  # 5 s in earnest
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(InputError, match=r"does not answer .*timed out"):
            connect(f"http://127.0.0.1:{mute.getsockname()[1]}")


def test_a_place_that_cannot_hold_a_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/mlflow\.db: cannot make the MLflow database here"):
        connect(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_file_that_is_no_database_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("my diary")
    with pytest.raises(InputError, match=r"^sqlite:///.*mlflow\.db: .*not a database"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert (tmp_path / "mlflow.db").read_text() == "my diary"


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_processes_that_start_together_on_a_fresh_store_all_work(tmp_path: Path, count: int) -> None:
    """Left to itself MLflow loses this race: each process migrates the same file."""
    code = (
        "import sys; from pipelines import tracking\n"
        "with tracking.track('racer', uri=sys.argv[1]) as run: run.metrics({'a': 1.0})"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(count)]
    errors = [racer.communicate(timeout=300)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * count, errors
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "maskbridge"]
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * count
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlflow.db"]


# --- runs --------------------------------------------------------------------------------------------------


def test_a_run_holds_what_was_logged(uri: str, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<html>")
    with tracking.track("first", experiment="crowns") as run:
        run.params({"train": {"minutes": 2.5, "crop": [256, 256]}, "long": "x" * 7000, "odd:key": 1})
        for step in range(3):
            run.metrics({"loss": {"total": 1.0 / (step + 1)}, "missing": None, "name": "text"}, step)
        run.metrics({"nan": math.nan}, 3)
        run.artifact(report)
        run.artifact(report, "pages")
        run.tag("kind", "test")
        run.data({"scene.tif": "ab" * 32})
    found = logged(uri, run.run_id)
    assert found.info.status == "FINISHED" and found.info.run_name == "first"
    assert found.data.params["train.minutes"] == "2.5"
    assert found.data.params["train.crop"] == "[256, 256]"
    assert found.data.params["odd_key"] == "1"
    assert len(found.data.params["long"]) == 6000 and found.data.params["long"].endswith("...")
    assert set(found.data.metrics) == {"loss.total", "nan"} and math.isnan(found.data.metrics["nan"])
    history = run.client.get_metric_history(run.run_id, "loss.total")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, 1.0 / 3)]
    assert found.data.tags["kind"] == "test" and found.data.tags["data.scene.tif"] == "ab" * 32
    assert found.data.tags["version.python"] and found.data.tags["mlflow.source.name"] == "maskbridge"
    names = {file.path for file in run.client.list_artifacts(run.run_id)}
    assert names == {"report.html", "pages"}
    assert (tmp_path / "mlruns" / run.run_id / "artifacts" / "report.html").is_file()


def test_many_metrics_go_in_few_requests(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    with tracking.track("curve") as run:
        send = run.client.log_batch
        monkeypatch.setattr(
            run.client, "log_batch", lambda i, metrics: sizes.append(len(metrics)) or send(i, metrics=metrics)
        )
        for step in range(600):
            run.metrics({"a": 1.0, "b": 2.0}, step)
    assert sizes == [1000, 200]
    assert len(run.client.get_metric_history(run.run_id, "b")) == 600


@pytest.mark.parametrize(
    ("raised", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_that_breaks_says_so(uri: str, raised: type[BaseException], status: str) -> None:
    with pytest.raises(raised), tracking.track("broken") as run:
        run.metrics({"loss": 1.0})
        raise raised
    assert logged(uri, run.run_id).info.status == status
    assert logged(uri, run.run_id).data.metrics == {"loss": 1.0}, "what was measured before is kept"


def test_a_resumed_run_goes_on_under_its_id(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError), tracking.track("train", key="crowns") as run:
        run.params({"minutes": 1, "seed": 0})
        run.metrics({"loss": 2.0}, 0)
        raise RuntimeError
    with tracking.track("train", key="crowns") as again:
        again.params({"minutes": 2, "seed": 0, "batch": 4})
        again.metrics({"loss": 1.0}, 1)
    assert again.run_id == run.run_id
    found = logged(uri, run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"minutes": "1", "seed": "0", "batch": "4"}
    assert "keeps minutes=1 (now 2)" in caplog.text
    assert [m.value for m in run.client.get_metric_history(run.run_id, "loss")] == [2.0, 1.0]


def test_a_store_that_goes_away_keeps_neither_training_nor_metrics_from_going_on(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    with tracking.track("train") as run:
        with monkeypatch.context() as patch:

            def away(*_: object, **__: object) -> None:
                raise MlflowException("gone fishing\nlong story")

            patch.setattr(run.client, "log_batch", away)
            for step in range(2500):
                run.metrics({"loss": float(step)}, step)
            assert not run.flush()
        run.metrics({"loss": -1.0}, 2500)
    assert len(run.client.get_metric_history(run.run_id, "loss")) == 2501
    told = [record.getMessage() for record in caplog.records if "is kept" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("gone fishing; the run goes on")


def test_a_deleted_experiment_is_told(uri: str) -> None:
    with tracking.track("x", experiment="old") as run:
        pass
    run.client.delete_experiment(logged(uri, run.run_id).info.experiment_id)
    with (
        pytest.raises(InputError, match="experiment old was deleted"),
        tracking.track("y", experiment="old", required=True),
    ):
        pass


def test_system_metrics_are_sampled_on_request(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    with tracking.track("watched", system_metrics=True) as run:
        time.sleep(1.5)
    assert logged(uri, run.run_id).data.metrics["system/cpu_utilization_percentage"] >= 0


# --- the registry ------------------------------------------------------------------------------------------


def test_a_registered_bundle_comes_back_to_the_byte(uri: str, bundle: Path) -> None:
    with tracking.track("train") as run:
        version = tracking.register(bundle, "crowns", run, alias="challenger")
    assert version == "1"
    for reference in ("models:/crowns@challenger", "models:/crowns/1", "models:/crowns/latest"):
        folder = tracking.download(reference)
        assert sorted(p.name for p in folder.iterdir()) == [CARD, DESCRIPTION, WEIGHTS]
        for name in (DESCRIPTION, WEIGHTS):
            assert (folder / name).read_bytes() == (bundle / name).read_bytes()
    loaded, local = load_bundle("models:/crowns@challenger"), load_bundle(bundle)
    assert (loaded.name, loaded.version) == ("crowns", "1")
    assert (loaded.sha256, loaded.digest, loaded.config) == (local.sha256, local.digest, local.config)
    weights, expected = loaded.build().state_dict(), local.build().state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_table_of_models(uri: str, bundle: Path, tmp_path: Path) -> None:
    assert tracking.list_models() == []
    with tracking.track("train") as run:
        tracking.register(bundle, "crowns", run, alias="champion")
    tracking.register(make_bundle(tmp_path / "b", seed=1), "crowns", alias="challenger", scores={"f1": 0.75})
    tracking.register(bundle, "buildings")
    rows = tracking.list_models()
    assert [(row["name"], row["version"], row["aliases"]) for row in rows] == [
        ("buildings", "1", []),
        ("crowns", "2", ["challenger"]),
        ("crowns", "1", ["champion"]),
    ]
    assert rows[1]["scores"] == {"f1": 0.75}
    assert rows[2]["scores"] == {"miou": 0.5, "per_class.tree.iou": 0.25} and rows[2]["run"] == run.run_id
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", rows[2]["created"])


def test_an_alias_moves_and_a_version_stays(uri: str, bundle: Path, tmp_path: Path) -> None:
    tracking.register(bundle, "crowns", alias="champion")
    pinned = tracking.resolve("models:/crowns@champion").reference
    tracking.register(make_bundle(tmp_path / "b", seed=1), "crowns", alias="champion")
    assert pinned == "models:/crowns/1"
    assert tracking.resolve("models:/crowns@champion").version == "2"
    assert load_bundle(pinned).sha256 == load_bundle(bundle).sha256


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("models:/crown@champion", r"no model is named crown \(did you mean crowns\?\); there are crowns"),
        ("models:/crowns@champion", r"model crowns has no alias champion; its aliases: challenger \(version 1\)"),
        ("models:/crowns/7", "model crowns has no version 7; its versions: 1"),
        ("models:/crowns", "expected models:/name@alias, models:/name/3 or models:/name/latest"),
        ("models:/crowns@a/b", "expected models:/name@alias"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(uri: str, bundle: Path, reference: str, fault: str) -> None:
    tracking.register(bundle, "crowns", alias="challenger")
    with pytest.raises(InputError, match=rf"^{re.escape(reference)}: {fault}"):
        load_bundle(reference)


def test_looking_into_a_store_that_is_not_there_does_not_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert tracking.list_models() == []
    with pytest.raises(InputError, match=r"models:/crowns@champion: no models are registered in sqlite"):
        load_bundle("models:/crowns@champion")
    assert not list(tmp_path.iterdir())


def test_files_changed_in_the_store_are_refused(uri: str, bundle: Path) -> None:
    tracking.register(bundle, "crowns")
    folder = tracking.download("models:/crowns/1")
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(InputError, match=r"models:/crowns/1: weights\.safetensors has sha256 .* registry says"):
        tracking.download("models:/crowns/1")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"models:/crowns/1: weights\.safetensors is missing"):
        load_bundle("models:/crowns/1")


def test_a_model_of_somebody_else_is_refused(uri: str) -> None:
    client = connect(uri)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "file:///nowhere")
    with pytest.raises(InputError, match="models:/foreign/1: was not registered by maskbridge"):
        tracking.download("models:/foreign/1")


def test_what_is_no_bundle_or_no_name_is_not_registered(uri: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a model"):
        tracking.register(tmp_path, "crowns")
    with pytest.raises(InputError, match=r"a/b.*no name for a model"):
        tracking.register(bundle, "a/b")
    for alias in ("latest", "v2", "the best"):
        with pytest.raises(InputError, match=f"{alias}: no alias for a model"):
            tracking.register(bundle, "crowns", alias=alias)
    assert tracking.list_models() == []


def test_reading_models_never_unpickles(uri: str) -> None:
    from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION

    assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is False


def test_keys_and_values_fit_mlflow() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": torch.tensor(2.0), "e": {}}) == {"a.b.c": 1, "d": 2.0}
    assert valid_key("é/ü: x") == "é/ü_ x" and len(valid_key("k" * 999)) == 250
    assert text([1, "zwei"], 50) == '[1, "zwei"]' and text("y" * 9, 8) == "yyyyy..."


# --- a real server -----------------------------------------------------------------------------------------


@pytest.fixture
def server(empty_database: Path, tmp_path: Path) -> Iterator[tuple[str, Path, subprocess.Popen]]:
    """`mlflow server` that keeps artifacts behind itself: (address, artifact folder, process)."""
    shutil.copyfile(empty_database, tmp_path / "server.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1", "--serve-artifacts"),
        *("--artifacts-destination", str(tmp_path / "behind")),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                connect(address)
                break
            except InputError:
                time.sleep(0.2)
        else:
            pytest.fail("mlflow server did not start in 60 s")
        yield address, tmp_path / "behind", process
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    import signal

    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.slow
def test_through_a_real_server(
    server: tuple[str, Path, subprocess.Popen],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    address, behind, process = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    with tracking.track("train") as run:
        run.params({"seed": 0})
        run.metrics({"loss": 1.0})
        tracking.register(bundle, "crowns", run, alias="champion")
    assert not (tmp_path / "mlruns").exists(), "the files went through the server"

    folder = tracking.download("models:/crowns@champion")
    assert folder.is_relative_to(tmp_path / "cache") and load_bundle(folder).sha256 == load_bundle(bundle).sha256
    (folder / WEIGHTS).write_bytes(b"broken")
    assert tracking.download("models:/crowns@champion") == folder
    assert (folder / WEIGHTS).read_bytes() == (bundle / WEIGHTS).read_bytes()

    shutil.rmtree(folder)
    (stored,) = behind.rglob(WEIGHTS)
    stored.write_bytes(b"tampered")
    with pytest.raises(InputError, match=r"models:/crowns/1: weights\.safetensors has sha256"):
        tracking.download("models:/crowns@champion")
    assert not folder.exists()

    with tracking.track("goes on") as run:
        stop(process)
        run.metrics({"loss": 1.0})
    assert "what MLflow did not take is kept" in caplog.text
    with pytest.raises(InputError, match="does not answer"):
        registry.list_models()
