"""Logs for machines: a JSON object a line, with the run's id, and no secret in any of them.

Keys: `time` (UTC, ISO 8601), `level`, `logger`, `message`, `run`, and where they apply `task`, `error` (type, message,
traceback). `run` is Prefect's flow run where there is one, else MASKBRIDGE_RUN_ID, else an id of this process.
`MASKBRIDGE_LOG_FORMAT=json` or `maskbridge --log-format json …` switches it on.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import traceback
import uuid
from datetime import UTC, datetime
from typing import Any, TextIO

RUN_VARIABLES = ("PREFECT__FLOW_RUN_ID", "MASKBRIDGE_RUN_ID")
SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|AUTH_STRING|API_KEY|ACCESS_KEY|WEBHOOK", re.IGNORECASE)
SHORTEST_SECRET = 6  # a shorter value may be any word
_WORDS = r"password|passwd|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|signature"
# What gives a secret away by what stands before it. A colon alone is prose ("password: field required").
TOLD = re.compile(
    rf"""(
        [?&;](?:sig|key|auth|credential|[\w-]*(?:{_WORDS}|credential))=    # in an address
      | \b[\w-]*(?:{_WORDS})\s?=\s?["']?                                # password=..., --token=...
      | ["'][\w-]*(?:{_WORDS})["']\s?:\s?["']                            # JSON and dicts
      | \b(?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:\w+\s+)?        # headers
      | \bbearer\s+(?=[\w.~+/-]{{16}})
    )[^\s&;"',)\]}}]+""",
    re.IGNORECASE | re.VERBOSE,
)
USERINFO = re.compile(r"(?<=://)[^/@\s]+@")

_process_run = uuid.uuid4().hex


def run_id() -> str:
    """The run this process works for."""
    return next((os.environ[name] for name in RUN_VARIABLES if os.environ.get(name)), _process_run)


def redacted(text: str) -> str:
    """`text` without passwords: the environment's secrets, and what an address, header or name gives away."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    return TOLD.sub(r"\1***", USERINFO.sub("***@", text))


class JsonFormatter(logging.Formatter):
    """One line of JSON a record; usable in `logging.config` without arguments."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__()  # whatever a config gives: there is one format

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
            "run": str(getattr(record, "flow_run_id", None) or run_id()),
        }
        task = getattr(record, "task_run_id", None)
        if task:
            said["task"] = str(task)
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            trace = "".join(traceback.format_exception(*record.exc_info))
            said["error"] = {"type": kind.__name__, "message": redacted(str(error)), "traceback": redacted(trace)}
        return json.dumps(said, ensure_ascii=False)


class JsonLines:
    """A stderr whose plain lines (progress, notes, other people's prints) become records too.

    Wraps the real one. What looks like JSON already passes as it is.
    """

    encoding = "utf-8"

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._part = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._part = (self._part + text).replace("\r", "\n").split("\n")
            for line in lines:
                self._say(line)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """Let out a last line without an end."""
        with self._lock:
            part, self._part = self._part, ""
            self._say(part)
            self.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def _say(self, line: str) -> None:
        if not line.strip():
            return
        if line.startswith("{") and line.endswith("}"):
            self._stream.write(line + "\n")
            return
        level = logging.ERROR if line.startswith(("error:", "internal error:")) else logging.INFO
        record = logging.LogRecord("maskbridge", level, "", 0, line.strip(), None, None)
        self._stream.write(JsonFormatter().format(record) + "\n")


def start() -> None:
    """From here on everything on this process' stderr is JSON lines."""
    if isinstance(sys.stderr, JsonLines):
        return
    real = sys.stderr
    sys.stderr = JsonLines(real)  # type: ignore[assignment]
    handler = logging.StreamHandler(real)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)


def _secrets() -> list[str]:
    """Values of this process' secret variables, longest first; of `user:password` the password too."""
    found = set()
    for name, value in os.environ.items():
        if SECRET_NAME.search(name):
            found |= {value, value.partition(":")[2]}
    return sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=len, reverse=True)
