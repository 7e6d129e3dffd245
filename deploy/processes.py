"""Services as background processes, known by process id and start time, so that only our own are ever stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from adapters.errors import InputError

POLL_S = 0.3


@dataclass(frozen=True)
class Started:
    """A process that was started: alive, gone, or its id now somebody else's."""

    name: str
    pid: int
    born: float
    settings: str

    def process(self) -> psutil.Process | None:
        """The process, while it lives."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.pid)
            if abs(found.create_time() - self.born) < 1.0 and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None


class Processes:
    """The background processes of one state folder: `run/NAME.json` says which, `logs/NAME.log` what they say."""

    def __init__(self, state: Path) -> None:
        self.run = state / "run"
        self.logs = state / "logs"

    def start(
        self, name: str, command: list[str], environment: dict[str, str], folder: Path, user: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start in a session of its own, with SIGINT as it is by default; output is appended to its log."""
        for made in (self.run, self.logs):
            made.mkdir(parents=True, exist_ok=True, mode=0o755)
        with (self.logs / f"{name}.log").open("ab") as log:
            try:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    user=user,
                    group=user,
                    extra_groups=[] if user else None,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                )
            except OSError as error:
                raise InputError(f"{name}: {error.filename or command[0]}: {error.strerror}") from error
        with contextlib.suppress(psutil.NoSuchProcess):
            born = psutil.Process(process.pid).create_time()
            note = {"pid": process.pid, "born": born, "settings": _digest(command, environment)}
            (self.run / f"{name}.json").write_text(json.dumps(note))
        return process

    def known(self, name: str) -> Started | None:
        """What was started under this name, alive or not."""
        try:
            note = json.loads((self.run / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return Started(name, note["pid"], note["born"], note["settings"])

    def alive(self, name: str) -> psutil.Process | None:
        """The process of this name, while it lives."""
        started = self.known(name)
        return started.process() if started else None

    def is_same(self, name: str, command: list[str], environment: dict[str, str]) -> bool:
        """Whether it was started with this very command and environment."""
        started = self.known(name)
        return started is not None and started.settings == _digest(command, environment)

    def stop(self, name: str, grace_s: float, number: int = signal.SIGTERM) -> bool:
        """Ask it to end, wait, then kill it and all it started. Whether there was anything to stop."""
        process = self.alive(name)
        if process is not None:
            family = process.children(recursive=True)
            process.send_signal(number)
            _, left = psutil.wait_procs([process], timeout=grace_s)
            for one in (*left, *family):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs([process, *family], timeout=5)
        (self.run / f"{name}.json").unlink(missing_ok=True)
        return process is not None

    def tail(self, name: str, lines: int = 20) -> str:
        """The end of its log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join((self.logs / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])
        return ""


def _digest(command: list[str], environment: dict[str, str]) -> str:
    """Of passwords too, so it is salted by nothing but their own 24 random bytes; the file is the owner's alone."""
    return hashlib.sha256(json.dumps([command, sorted(environment.items())]).encode()).hexdigest()


def wait_until_healthy(
    name: str, check: list[str], environment: dict[str, str], alive: Callable[[], bool], timeout_s: float
) -> None:
    """Repeat a health check until it succeeds. InputError where the process ends first, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        done = subprocess.run(check, env=environment, cwd=Path(__file__).parents[1], capture_output=True, check=False)
        if done.returncode == 0:
            return
        if not alive():
            raise InputError(f"{name} ended while it started")
        if time.monotonic() > deadline:
            raise InputError(f"{name} is not healthy after {timeout_s:.0f} s")
        time.sleep(POLL_S)


def unprivileged() -> str | None:
    """The user for programs that refuse root; None where we are not root."""
    if os.geteuid() != 0:
        return None
    import pwd

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise InputError("PostgreSQL does not run as root, and there is no user postgres or nobody")
