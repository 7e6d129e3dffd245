"""Logs for machines: every line of stderr is JSON with the run's id, and no line holds a secret."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.json_logs import JsonFormatter, redacted

MASKBRIDGE = str(Path(sys.executable).parent / "maskbridge")


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("pipelines.x", logging.WARNING, "", 0, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_a_record_has_time_level_logger_message_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MASKBRIDGE_RUN_ID", "nightly-7")
    said = json.loads(JsonFormatter().format(record("%d tiles\nof %s", 3, "scène")))
    assert said.pop("time").endswith("+00:00")
    assert said == {"level": "warning", "logger": "pipelines.x", "message": "3 tiles\nof scène", "run": "nightly-7"}
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "a-flow-run")
    assert json.loads(JsonFormatter().format(record("x")))["run"] == "a-flow-run"
    said = json.loads(JsonFormatter().format(record("x", flow_run_id="of-the-record", task_run_id="t")))
    assert said["run"] == "of-the-record" and said["task"] == "t"


def test_errors_come_with_their_traceback_on_the_same_line() -> None:
    try:
        raise ValueError("no such band")
    except ValueError:
        line = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    error = json.loads(line)["error"]
    assert (
        error["type"] == "ValueError" and error["message"] == "no such band" and "test_json_logs" in error["traceback"]
    )


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a.tif?token=t0ps3cret&size=3",
        "https://host/a.tif?api_key=t0ps3cret",
        "https://host/a.tif?size=3&access-token=t0ps3cret#page",
        "Authorization: Bearer t0ps3cret",
        "authorization: Basic t0ps3cret==",
        "{'Authorization': 'Bearer t0ps3cret', 'Accept': '*/*'}",
        "curl said: bearer t0ps3cret-t0ps3cret",
        "api_key=t0ps3cret",
        "maskbridge --password=t0ps3cret scene.tif",
        "DB_PASSWORD = 't0ps3cret'",
        '{"client_secret": "t0ps3cret", "size": 3}',
        "{'aws_secret_access_key': 't0ps3cret'}",
        "connect(host='db', password=t0ps3cret)",
    ],
)
def test_what_is_named_a_secret_is_not_told(text: str) -> None:
    """In a message, and in an exception's message and traceback."""
    assert "t0ps3cret" not in redacted(text) and "***" in redacted(text)
    try:
        raise ConnectionError(f"no answer: {text}")
    except ConnectionError:
        record = logging.LogRecord("maskbridge", logging.ERROR, "", 0, "asked %s", (text,), sys.exc_info())
    assert "t0ps3cret" not in JsonFormatter().format(record)


@pytest.mark.parametrize(
    "text",
    [
        "password: field required",
        "the token bucket is empty",
        "num_tokens=512 size=3",
        "a bearer of good news",
        "secret: PREFECT_API_AUTH_STRING is not set",
        "https://host/tiles/a.tif?size=3&monkey=4",
    ],
)
def test_prose_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_no_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:correct-horse")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "battery-staple")
    for text in (
        "signed in as admin:correct-horse",
        "header correct-horse",
        "postgresql://mlflow:battery-staple@db/mlflow",
        "http://me:any-other-word@host/x",
        "https://host/a.tif?X-Amz-Signature=abcdef0123&X-Amz-Credential=AKIA/x&size=3",
        "https://host/a.tif?sv=2024&sig=abc%2Fdef",
    ):
        told = redacted(text)
        for secret in ("horse", "staple", "any-other-word", "abcdef0123", "AKIA", "abc%2F"):
            assert secret not in told, told
    assert "size=3" in redacted("https://host/a.tif?X-Amz-Signature=abc&size=3")
    assert redacted("an ordinary line, 12/40 tiles") == "an ordinary line, 12/40 tiles"


@pytest.mark.parametrize("how", ["option", "variable"])
def test_the_command_line_speaks_json_on_stderr(tmp_path: Path, how: str) -> None:
    words = [MASKBRIDGE, *(("--log-format", "json") if how == "option" else ()), "predict", "nowhere", "missing.tif"]
    variables = {"MASKBRIDGE_LOG_FORMAT": "json"} if how == "variable" else {}
    environment = {**os.environ, **variables, "MASKBRIDGE_RUN_ID": "r1"}
    done = subprocess.run([*words, "--out", tmp_path], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines and {line["run"] for line in lines} == {"r1"}
    assert lines[-1]["level"] == "error" and lines[-1]["message"].startswith("error: ")


def test_an_unknown_format_is_bad_usage() -> None:
    done = subprocess.run([MASKBRIDGE, "--log-format", "xml", "doctor"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "log-format" in done.stderr


def test_an_address_that_does_not_open_is_named_without_its_password() -> None:
    from adapters.errors import InputError
    from pipelines.sources import open_source

    with pytest.raises(InputError) as told:
        open_source("http://me:hunter2@127.0.0.1:9/scene.tif?sig=hunter3")
    assert "hunter" not in str(told.value) and "127.0.0.1:9/scene.tif" in str(told.value)
