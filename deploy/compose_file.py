"""docker-compose.yml as the real parser reads it, and the same services as processes of this machine.

What differs without containers, and nothing else: a service's name in an address becomes 127.0.0.1 and the port it
publishes; a volume's path becomes a folder of this machine; /app is this checkout. Isolation, restarts and limits of
resources are Docker's and have no twin.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from pipelines.telemetry import opt_out

ROOT = Path(__file__).resolve().parents[1]
APP = "/app"  # where the image has this checkout
ANYWHERE, HERE = "0.0.0.0", "127.0.0.1"


@dataclass(frozen=True)
class Service:
    """One service as processes of this machine need it."""

    name: str
    command: list[str]
    environment: dict[str, str]
    health: list[str] | None
    needs: dict[str, str]  # service: condition
    volumes: dict[str, Path]  # path in the container: folder here
    port: int | None
    once: bool  # ends by itself (`restart: "no"`)
    grace_s: float
    translate: Callable[[str], str]  # a word of a command for the container, into one for here


def parse(env_file: Path, *files: str) -> dict[str, Any]:
    """The resolved compose file. InputError with the parser's own line where a password is missing, say."""
    named = [word for file in files or ("docker-compose.yml",) for word in ("-f", file)]
    words = [parser(), "--env-file", str(env_file), *named, "config", "--format", "json"]
    # Only the file counts: a variable exported in somebody's shell must not change what runs.
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(words, cwd=ROOT, env=bare, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise InputError(f"{env_file}: {done.stderr.strip().splitlines()[-1]}")
    resolved: dict[str, Any] = json.loads(done.stdout)
    return resolved


def parser() -> str:
    """The compose binary of the lock; its Python wrapper ends with 0 whatever happened."""
    found = find_spec("compose")
    for place in found.submodule_search_locations or () if found else ():
        binary = Path(place) / "docker-compose"
        if binary.is_file():
            return str(binary)
    raise InputError("the compose parser is not installed; it comes with the lock (make setup)")


def services(env_file: Path, state: Path) -> dict[str, Service]:
    """Every service of the profiles in `env_file`, translated; named volumes lie in `state/volumes`."""
    resolved = parse(env_file)["services"]
    published = {
        f"{name}:{port['target']}": int(port["published"])
        for name, described in resolved.items()
        for port in described.get("ports", ())
    }
    volumes = {name: _volumes(described, state) for name, described in resolved.items()}
    # A path may be named by a service that does not mount it: deployments are registered with the workers' folders.
    folders = {target: folder for one in volumes.values() for target, folder in one.items()}
    return {
        name: _translated(
            name, described, volumes[name], _Native(name, published, {**folders, **volumes[name], APP: ROOT})
        )
        for name, described in resolved.items()
    }


def in_order(chosen: dict[str, Service]) -> list[Service]:
    """Services after what they need."""
    done: dict[str, Service] = {}

    def visit(name: str) -> None:
        if name not in done:
            for needed in sorted(chosen[name].needs):
                visit(needed)
            done[name] = chosen[name]

    for name in sorted(chosen):
        visit(name)
    return list(done.values())


def _volumes(described: dict[str, Any], state: Path) -> dict[str, Path]:
    return {
        volume["target"]: (state / "volumes" / volume["source"])
        if volume["type"] == "volume"
        else Path(volume["source"])
        for volume in described.get("volumes", ())
    }


def _translated(name: str, described: dict[str, Any], volumes: dict[str, Path], to_native: _Native) -> Service:
    health = described.get("healthcheck", {}).get("test")
    return Service(
        name=name,
        command=[to_native.word(word) for word in described.get("command") or ()],
        environment=to_native.environment(described.get("environment") or {}),
        health=[to_native.word(word) for word in health[1:]] if health else None,
        needs={needed: how["condition"] for needed, how in described.get("depends_on", {}).items()},
        volumes=volumes,
        port=next((int(port) for port in to_native.ports.values()), None),
        once=described.get("restart") == "no",
        grace_s=_seconds(described.get("stop_grace_period", "10s")),
        translate=to_native.word,
    )


class _Native:
    """Words of one service, with its container's addresses and paths replaced by this machine's."""

    def __init__(self, name: str, published: dict[str, int], folders: dict[str, Path]) -> None:
        self.addresses = {address: f"{HERE}:{port}" for address, port in published.items()}
        self.names = {address.partition(":")[0]: str(port) for address, port in published.items()}
        mine = {address.partition(":")[2]: str(port) for address, port in published.items() if _of(address, name)}
        self.ports = mine
        self.addresses |= {f"{HERE}:{target}": f"{HERE}:{port}" for target, port in mine.items()}
        self.folders = dict(sorted(folders.items(), key=lambda pair: -len(pair[0])))

    def word(self, text: str) -> str:
        """One argument of a command."""
        if text == ANYWHERE:
            return HERE
        return self.ports.get(text) or self.value(text)

    def value(self, text: str) -> str:
        """A piece of text with addresses (`mlflow:5000`) and paths (`/data`, at word borders) replaced."""
        for address, native in self.addresses.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(address)}(?!\d)", native, text)
        for target, folder in self.folders.items():
            text = re.sub(rf"(?<![\w./-]){re.escape(target)}(?=[/:,\s]|$)", str(folder).replace("\\", r"\\"), text)
        return text

    def environment(self, given: dict[str, str | None]) -> dict[str, str]:
        """The service's variables over what the image has; nothing of the caller's but its home and language."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TZ") if name in os.environ}
        binaries = [ROOT / ".venv" / "bin", *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
        search = os.pathsep.join([*map(str, binaries), os.environ.get("PATH", os.defpath)])
        own = {name: self.value(value or "") for name, value in given.items()}
        host = own.get("PGHOST")
        if host in self.names:  # libpq's two halves of an address
            own |= {"PGHOST": HERE, "PGPORT": self.names[host]}
        return {**kept, "PATH": search, "PYTHONUNBUFFERED": "1", **opt_out({}), **own}


def _of(address: str, name: str) -> bool:
    return address.partition(":")[0] == name


def _seconds(text: str) -> float:
    """`1m30s` in seconds."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", text))
