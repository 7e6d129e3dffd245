"""doctor: knows the combinations that break, sees dead servers within seconds, never shows a password."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import doctor
from pipelines.doctor import Check

GOOD = {"fastapi": "0.150.0", "sqlalchemy": "2.0.58", "prefect": "3.8.8", "mlflow": "3.17.2"}


def findings(**changes: str | None) -> dict[str, Check]:
    """The checks of the good stack with some versions changed, by package; the plain listing left out."""
    table: dict[str, str | None] = {**dict.fromkeys(doctor.STACK, "1.0"), **GOOD}
    table.update({name.replace("_", "-"): version for name, version in changes.items()})
    return {check.name: check for check in doctor.versions(table.get) if check.status != "ok"}


def test_the_pinned_stack_is_fine() -> None:
    assert findings() == {}


@pytest.mark.parametrize(
    ("package", "version", "status", "said"),
    [
        ("fastapi", "0.151.0", "fail", "does not start"),
        ("fastapi", "0.165.0", "fail", "does not start"),
        ("sqlalchemy", "2.1.0", "fail", "schedules nothing"),
        ("sqlalchemy", "2.1.9", "fail", "schedules nothing"),
        ("lightning", "2.6.2", "fail", "credentials"),
        ("lightning", "2.6.3", "fail", "credentials"),
        ("pytorch_lightning", "2.6.3", "fail", "credentials"),
        ("adapters", "1.2.0", "fail", "hides"),
        ("mlflow", "3.19.0", "warn", "not tested"),
        ("prefect", "3.10.1", "warn", "not tested"),
        ("prefect", "3.8.7", "warn", "not tested"),
    ],
)
def test_a_known_break_is_named(package: str, version: str, status: str, said: str) -> None:
    found = findings(**{package: version})
    (check,) = found.values()
    assert check.status == status
    assert said in check.found and version in check.found
    assert check.fix


@pytest.mark.parametrize("version", ["2.6.1", "2.6.4", "2.6.6"])
def test_clean_lightning_is_left_alone(version: str) -> None:
    assert findings(lightning=version) == {}


def test_a_pair_breaks_only_together() -> None:
    assert findings(fastapi="0.165.0", prefect=None).keys() == {"packages"}  # prefect missing, fastapi no fault


def test_a_missing_package_fails_by_name() -> None:
    check = findings(rasterio=None)["packages"]
    assert check.status == "fail" and "rasterio" in check.found and check.fix


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.15.0+cu132", (2, 15, 0)), ("0.151", (0, 151)), ("3.8.8rc1", (3, 8, 8)), ("dev", (0,))],
)
def test_versions_are_compared_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert doctor.parse(text) == numbers


class Health(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path.endswith("/health") else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that takes connections and never answers: the worst kind of dead server."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_servers_that_answer(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.tracking(server).status == "ok"
    assert doctor.prefect_server({"PREFECT_API_URL": f"{server}/api"}).status == "ok"
    monkeypatch.setattr(Health, "status", 503)
    assert "503" in doctor.tracking(server).found


def test_servers_that_do_not(silent: str) -> None:
    began = time.perf_counter()
    for url in (silent, closed_port()):
        assert doctor.probe(url, timeout=0.3) is not None
    assert time.perf_counter() - began < 3
    check = doctor.tracking(closed_port())
    assert check.status == "fail" and "MLFLOW_TRACKING_URI" in check.fix
    check = doctor.prefect_server({"PREFECT_API_URL": closed_port()})
    assert check.status == "fail" and "PREFECT_API_URL" in check.fix


def test_no_prefect_server_is_no_fault() -> None:
    assert doctor.prefect_server({}).status == "info"


def test_tracking_places(tmp_path: Path) -> None:
    assert doctor.tracking(f"sqlite:///{tmp_path / 'mlflow.db'}").status == "ok"
    assert doctor.tracking(f"sqlite:///{tmp_path / 'nowhere' / 'mlflow.db'}").status == "fail"
    assert "mlflow migrate-filestore" in doctor.tracking(f"file:{tmp_path}").fix
    assert doctor.tracking("./mlruns").status == "fail"


def test_a_password_is_never_shown() -> None:
    for uri in ("postgresql://me:secret@127.0.0.1/mlflow", closed_port().replace("//", "//me:secret@")):
        assert "secret" not in repr(doctor.tracking(uri))
    url = closed_port().replace("//", "//me:secret@")
    assert "secret" not in repr(doctor.prefect_server({"PREFECT_API_URL": url}))


def test_telemetry_is_off_by_our_own_settings() -> None:
    from pipelines.telemetry import opt_out

    assert doctor.telemetry(opt_out({})).status == "ok"
    assert doctor.telemetry({}).status == "warn"
    # MLflow reads nothing but the word "true": "1" would leave it on.
    assert "DO_NOT_TRACK" in doctor.telemetry({**opt_out({}), "DO_NOT_TRACK": "1"}).found


def test_the_whole_examination(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    checks = doctor.examine()
    names = {check.name for check in checks}
    assert {"python", "packages", "accelerator", "precision", "threads", "memory", "disk", "gdal"} <= names
    assert [check for check in checks if check.status == "fail"] == []
    text = doctor.render(checks)
    assert all(check.name in text for check in checks)


def test_what_to_fix_is_listed() -> None:
    text = doctor.render([Check("gdal", "ok", "3.9"), Check("disk", "warn", "1 GiB free", "free some")])
    assert text.splitlines()[-1].strip() == "disk: free some"
    assert doctor.render([Check("gdal", "ok", "3.9")]).endswith("Nothing to fix.")
