"""The services of docker-compose.yml without Docker, by the same verbs: `python -m deploy.native up|down|ps|…`.

    up [SERVICE …]        start what is not running, in order, each once what it needs is healthy; returns then
    down                  stop all, in reverse order; nothing is deleted
    stop, restart SERVICE …
    ps                    what runs; exit code 1 where a service does not
    logs SERVICE          what it said
    exec SERVICE COMMAND  run a command with the service's environment, such as `exec worker prefect flow-run ls`

Reads the same .env. State (databases, artifacts, logs, process ids) is kept in .native, or in --state.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from adapters.errors import InputError
from deploy import postgres
from deploy.compose_file import ROOT, Service, in_order, services
from deploy.processes import Processes, wait_until_healthy

START_S = 300
POSTGRES = "postgres"


class Twin:
    """The services of one environment file in one state folder."""

    def __init__(self, env_file: Path, state: Path) -> None:
        self.state = state.resolve()
        self.services = services(env_file.resolve(), self.state)
        self.processes = Processes(self.state)

    def up(self, names: list[str]) -> None:
        """Start what does not run; InputError with the end of the log where one does not get well."""
        self.state.mkdir(parents=True, exist_ok=True)
        for service in in_order(self.services):
            if names and service.name not in names:
                continue
            if self.processes.alive(service.name):
                if self.processes.is_same(service.name, *self._words(service)):
                    continue
                self.stop([service.name])  # as compose does with a container whose settings changed
            try:
                self._start(service)
            except InputError as error:
                log = self.processes.tail(service.name)
                raise InputError(f"{error}\n{log}" if log else str(error)) from error
            say(f"{service.name}: {'done' if service.once else 'healthy'}")

    def stop(self, names: list[str]) -> None:
        """Stop in reverse order."""
        for service in reversed(in_order(self.services)):
            if not names or service.name in names:
                number = postgres.FAST if service.name == POSTGRES else signal.SIGTERM
                if self.processes.stop(service.name, service.grace_s, number):
                    say(f"{service.name}: stopped")

    def ps(self) -> int:
        """A line a service; 1 where one that should run does not."""
        code = 0
        for service in in_order(self.services):
            process = self.processes.alive(service.name)
            if service.once:
                state = "runs" if process else "runs once, at the start"
            elif process is None:
                state, code = "DOWN", 1
            else:
                check = subprocess.run(service.health or ["true"], env=service.environment, cwd=ROOT, check=False)
                state = f"{'healthy' if check.returncode == 0 else 'UNHEALTHY'}, pid {process.pid}"
                code = code or int(check.returncode != 0)
            address = f"127.0.0.1:{service.port}" if service.port else "-"
            sys.stdout.write(f"{service.name:12}{address:18}{state}\n")
        return code

    def execute(self, name: str, command: list[str]) -> int:
        """Run a command with a service's environment and wait for it."""
        service = self.find(name)
        environment = postgres.inside(service) if name == POSTGRES else service.environment
        words = [service.translate(word) for word in command]
        try:
            return subprocess.run(words, env=environment, cwd=ROOT, check=False).returncode
        except OSError as error:
            raise InputError(f"{words[0]}: {error.strerror}") from error

    def find(self, name: str) -> Service:
        """A service by name."""
        if name not in self.services:
            raise InputError(f"{name}: no such service; there are {', '.join(sorted(self.services))}")
        return self.services[name]

    def _words(self, service: Service) -> tuple[list[str], dict[str, str]]:
        return postgres.words(service) if service.name == POSTGRES else (service.command, service.environment)

    def _start(self, service: Service) -> None:
        for target, folder in service.volumes.items():
            if folder.is_relative_to(self.state):
                folder.mkdir(parents=True, exist_ok=True)
            elif not folder.exists():
                raise InputError(f"{folder}: not there; {service.name} needs it as {target}")
        if service.name == POSTGRES:
            postgres.start(service, self.processes)
            return
        process = self.processes.start(service.name, *self._words(service), ROOT)
        if service.once:
            if process.wait():
                raise InputError(f"{service.name} ended with {process.returncode}")
        elif service.health:
            alive = lambda: process.poll() is None  # noqa: E731
            wait_until_healthy(service.name, service.health, service.environment, alive, START_S)
        else:
            time.sleep(1)


def say(line: str) -> None:
    """Progress; stdout stays free for what was asked."""
    sys.stderr.write(line + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a service is down, 2 bad input; of `exec`, the command's own."""
    options = argparse.ArgumentParser(
        prog="python -m deploy.native", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--env-file", type=Path, default=Path(os.environ.get("MASKBRIDGE_ENV", ROOT / ".env")))
    options.add_argument("--state", type=Path, default=Path(os.environ.get("MASKBRIDGE_STATE", ROOT / ".native")))
    options.add_argument("verb", choices=("up", "down", "stop", "restart", "ps", "logs", "exec"))
    options.add_argument("words", nargs=argparse.REMAINDER)
    given = options.parse_args(arguments)
    try:
        if not given.env_file.is_file():
            raise InputError(f"{given.env_file}: not there; python -m deploy.environment writes one")
        return run(Twin(given.env_file, given.state), given.verb, [word for word in given.words if word != "-T"])
    except InputError as error:
        say(f"error: {error}")
        return 2


def run(twin: Twin, verb: str, words: list[str]) -> int:
    """One verb; options of compose's that mean nothing here (`-d`, `--wait`) are let pass."""
    if verb == "exec":
        if len(words) < 2:
            raise InputError("exec needs a service and a command")
        return twin.execute(words[0], words[1:])
    names = [word for word in words if not word.startswith("-")]
    for name in names:
        twin.find(name)
    if verb in ("down", "stop", "restart"):
        twin.stop(names)
    if verb in ("up", "restart"):
        twin.up(names)
    if verb == "ps":
        return twin.ps()
    if verb == "logs":
        for name in names or sorted(twin.services):
            sys.stdout.write(twin.processes.tail(name, 200) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
