"""The compose files through the real parser: they resolve, refuse missing passwords, and keep what they promise."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.errors import InputError
from deploy.compose_file import ROOT, in_order, parse, parser, services
from deploy.environment import fresh
from deploy.image_steps import context, environment_of
from pipelines.telemetry import ENFORCED, QUIET

FILES = ("docker-compose.yml", "compose.s3.yaml")
REQUIRED = [
    *("MASKBRIDGE_DATA", "MASKBRIDGE_RESULTS", "POSTGRES_PASSWORD", "PREFECT_DB_PASSWORD", "MLFLOW_DB_PASSWORD"),
    *("PREFECT_PASSWORD", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY"),
]


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    file = tmp_path / "test.env"
    file.write_text(fresh(tmp_path / "data", tmp_path / "results", {"COMPOSE_PROFILES": "cpu,gpu"}))
    return file


def config(env_file: Path, *files: str) -> subprocess.CompletedProcess:
    named = [word for file in files for word in ("-f", file)]
    words = [parser(), "--env-file", str(env_file), *named, "config", "-q"]
    return subprocess.run(words, cwd=ROOT, env={}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("files", [FILES[:1], FILES])
def test_the_files_resolve(env_file: Path, files: tuple[str, ...]) -> None:
    done = config(env_file, *files)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_the_parser_is_the_real_one_and_can_say_no(env_file: Path, tmp_path: Path) -> None:
    """Its wrapper on PATH ends with 0 whatever happens; the binary does not."""
    broken = tmp_path / "broken.yml"
    broken.write_text((ROOT / FILES[0]).read_text().replace("healthcheck:", "healthchek:", 1))
    assert config(env_file, str(broken)).returncode != 0
    broken.write_text((ROOT / FILES[0]).read_text().replace("postgres: {condition", "postgrs: {condition", 1))
    assert config(env_file, str(broken)).returncode != 0


@pytest.mark.parametrize("missing", REQUIRED)
def test_what_is_required_has_no_default(env_file: Path, missing: str) -> None:
    text = env_file.read_text()
    for changed in (
        re.sub(rf"^{missing}=.*\n", "", text, flags=re.M),
        re.sub(rf"^{missing}=.*", f"{missing}=", text, flags=re.M),
    ):
        assert changed != text
        env_file.write_text(changed)
        done = config(env_file, FILES[0])
        assert done.returncode != 0 and missing in done.stderr
        with pytest.raises(InputError, match=missing):
            parse(env_file)


def test_the_example_alone_starts_nothing(tmp_path: Path) -> None:
    assert config(ROOT / "deploy" / "env.example", FILES[0]).returncode != 0
    store = tmp_path / "no-store.env"
    store.write_text(re.sub(r"^OBJECT_STORE_.*\n", "", fresh(tmp_path, tmp_path), flags=re.M))
    assert config(store, FILES[0]).returncode == 0
    assert re.search("OBJECT_STORE_(USER|PASSWORD)", config(store, *FILES).stderr), "whichever it looks at first"


def test_one_image_on_loopback_signed_in_and_without_rights(env_file: Path) -> None:
    described = parse(env_file)["services"]
    assert set(described) == {"postgres", "prefect", "mlflow", "register", "worker", "worker-gpu"}
    ours = {name: service for name, service in described.items() if name != "postgres"}
    assert {service["image"] for service in ours.values()} == {"maskbridge:local"}
    for name, service in described.items():
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name
        if name != "register":
            check = service["healthcheck"]["test"]
            assert check[0] == "CMD" and "curl" not in check and "wget" not in check, name
    for name, service in ours.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"], name
        assert not service["user"].startswith("0:") or "0:0" in env_file.read_text()
    password = re.search(r"^PREFECT_PASSWORD=(.+)$", env_file.read_text(), re.M)
    assert password is not None
    assert described["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"] == f"admin:{password[1]}"
    assert "basic-auth" in (ROOT / "deploy" / "mlflow_server.py").read_text()
    for name in ("worker", "worker-gpu"):
        targets = {volume["target"]: volume for volume in described[name]["volumes"]}
        assert targets["/data"]["read_only"] and described[name]["environment"]["MASKBRIDGE_ROOTS"] == "/data:/results"
    gpu = described["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu[0]["capabilities"] == ["gpu"]
    # No password on a command line, where every user of the machine can read it.
    secrets = re.findall(r"^\w+_(?:PASSWORD|KEY)=(.+)$", env_file.read_text(), re.M)
    assert len(secrets) >= 6
    assert not any(
        secret in str((s.get("command"), s.get("healthcheck"))) for s in described.values() for secret in secrets
    )


def test_profiles_choose_the_workers(tmp_path: Path) -> None:
    for profiles, expected in (("cpu", {"worker"}), ("gpu", {"worker-gpu"}), ("", set())):
        file = tmp_path / "profiles.env"
        file.write_text(fresh(tmp_path, tmp_path, {"COMPOSE_PROFILES": profiles}))
        assert {name for name in parse(file)["services"] if name.startswith("worker")} == expected


def test_the_overlay_changes_the_store_and_nothing_else(env_file: Path) -> None:
    plain, store = parse(env_file)["services"], parse(env_file, *FILES)["services"]
    assert set(store) - set(plain) == {"object-store", "bucket"}
    assert store["mlflow"]["environment"]["MLFLOW_ARTIFACTS_DESTINATION"] == "s3://mlflow/artifacts"
    assert {name for name in plain if plain[name] != store[name]} == {"mlflow"}
    lock = (ROOT / "deploy" / "object-store.lock").read_text()
    assert "boto3==" in lock and lock.count("--hash=sha256:") > 5 and "://" not in lock


def test_the_twin_runs_what_the_file_says(env_file: Path, tmp_path: Path) -> None:
    """Addresses become this machine's, volumes its folders; command, order and environment are the file's."""
    env_file.write_text(env_file.read_text() + "\nMLFLOW_PORT=15999\n")
    twin = services(env_file, tmp_path / "state")
    order = [service.name for service in in_order(twin)]
    assert order.index("postgres") < order.index("prefect") < order.index("register") < order.index("worker")
    worker = twin["worker"].environment
    assert worker["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:15999"
    assert worker["MASKBRIDGE_ROOTS"] == f"{tmp_path}/data:{tmp_path}/results"
    assert worker["MASKBRIDGE_PROJECT"] == str(ROOT) and worker["MASKBRIDGE_DATA"] == f"{tmp_path}/data"
    assert twin["register"].environment["MASKBRIDGE_RESULTS"] == f"{tmp_path}/results", "what it registers is theirs"
    mlflow = twin["mlflow"]
    assert mlflow.command[-4:] == ["--host", "127.0.0.1", "--port", "15999"]
    assert mlflow.environment["PGHOST"] == "127.0.0.1" and mlflow.environment["PGPORT"] == "5442"
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg://mlflow@127.0.0.1:5442/mlflow"
    assert mlflow.environment["MLFLOW_ARTIFACTS_DESTINATION"] == str(tmp_path / "state" / "volumes" / "artifacts")
    assert mlflow.health is not None and mlflow.health[-1] == "http://127.0.0.1:15999/health"
    assert twin["postgres"].translate("/docker-entrypoint-initdb.d/databases.sh") == str(ROOT / "deploy/databases.sh")


def test_the_callers_own_environment_does_not_leak_into_services(
    env_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere:4200/api")
    monkeypatch.setenv("MLFLOW_PASSWORD", "from-the-shell")
    worker = services(env_file, tmp_path)["worker"].environment
    assert worker["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert worker["MLFLOW_TRACKING_PASSWORD"] != "from-the-shell"


def test_a_fresh_environment_file_has_its_own_passwords_and_is_the_owners_alone(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "deploy.environment", "--data", tmp_path / "d", "--results", tmp_path / "r"]
    texts = []
    for name in ("a.env", "b.env"):
        subprocess.run([*words, "--file", tmp_path / name], cwd=ROOT, check=True)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        texts.append((tmp_path / name).read_text())
    drawn = [dict(re.findall(r"^(\w+_(?:PASSWORD|KEY))=(.+)$", text, re.M)) for text in texts]
    assert len(drawn[0]) >= 7 and not set(drawn[0].values()) & set(drawn[1].values())
    assert len(set(drawn[0].values())) == len(drawn[0])
    again = subprocess.run([*words, "--file", tmp_path / "a.env"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and "there already" in again.stderr
    assert (tmp_path / "a.env").read_text() == texts[0]
    rotated = subprocess.run([*words[:3], "--rotate", "--file", tmp_path / "a.env"], cwd=ROOT, check=True)
    assert rotated.returncode == 0
    after = dict(re.findall(r"^(\w+_(?:PASSWORD|KEY))=(.+)$", (tmp_path / "a.env").read_text(), re.M))
    assert set(after) == set(drawn[0]) and not set(after.values()) & set(drawn[0].values())
    assert stat.S_IMODE((tmp_path / "a.env").stat().st_mode) == 0o600
    assert f"MASKBRIDGE_DATA={tmp_path / 'd'}\n" in (tmp_path / "a.env").read_text(), "the rest stays"


def test_the_image_is_built_from_the_lock_and_never_holds_a_password(tmp_path: Path) -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes requirements.lock" in text and "USER 1000:1000" in text
    assert {**QUIET, **ENFORCED}.items() <= environment_of(text).items(), "no dependency phones home from the image"
    copy = tmp_path / "checkout"
    copy.mkdir()
    subprocess.run(["git", "init", "-q", copy], check=True)
    shutil.copy(ROOT / ".dockerignore", copy)
    for name in (
        ".env",
        "deploy/.env",
        "deploy/a.py",
        "mlflow.db",
        "flows/x.db",
        "demo-output/a",
        "pyproject.toml",
        "tests/t.py",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    assert sorted(context(copy)) == ["deploy/a.py", "pyproject.toml"]
    here = set(context())
    assert {"prefect.yaml", "requirements.lock", "flows/reap.py", "deploy/worker.py", "pipelines/cli.py"} <= here
    assert not any(name.startswith(("tests/", "benchmarks/", "docs/")) for name in here)
