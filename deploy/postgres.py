"""PostgreSQL from the system's packages, started the way its official image does: an empty folder is initialised."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from adapters.errors import InputError
from deploy.compose_file import HERE, Service
from deploy.processes import Processes, unprivileged, wait_until_healthy

DATA = "/var/lib/postgresql/data"
SCRIPTS = "/docker-entrypoint-initdb.d/"
START_S = 120
# Ends sessions at once and leaves a clean database; TERM would wait for every client.
FAST = signal.SIGINT


def start(service: Service, processes: Processes) -> None:
    """Initialise the data folder where it is empty, start, wait, and run the image's scripts the first time."""
    search = service.environment["PATH"]
    data = service.volumes[DATA]
    user = unprivileged()
    fresh = not (data / "PG_VERSION").exists()
    if fresh:
        _initialise(service, data, user, _program("initdb", search))
    process = processes.start(service.name, *words(service), data, user)
    check = list(service.health or ())
    wait_until_healthy(service.name, check, service.environment, lambda: process.poll() is None, START_S)
    if fresh:
        prepare(service)


def words(service: Service) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the server."""
    data = service.volumes[DATA]
    options = {"listen_addresses": HERE, "unix_socket_directories": str(data)}
    named = (word for name, value in options.items() for word in ("-c", f"{name}={value}"))
    program = _program("postgres", service.environment["PATH"])
    return [program, "-D", str(data), "-p", str(service.port), *named], _without_secrets(service)


def prepare(service: Service) -> None:
    """Run what the compose file puts into the image's init folder."""
    for target, script in sorted(service.volumes.items()):
        if target.startswith(SCRIPTS):
            words = ["sh", str(script)]
            done = subprocess.run(words, env=inside(service), capture_output=True, text=True, check=False)
            if done.returncode:
                raise InputError(f"{script.name}: {(done.stderr.strip().splitlines() or ['failed'])[0]}")


def inside(service: Service) -> dict[str, str]:
    """The environment of a command inside PostgreSQL's container: its socket needs no password, and lies in a folder
    that only its owner (and root) can enter."""
    return service.environment | {"PGHOST": str(service.volumes[DATA]), "PGPORT": str(service.port)}


def _initialise(service: Service, data: Path, user: str | None, program: str) -> None:
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)
    with tempfile.NamedTemporaryFile(
        "w", prefix="maskbridge-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as password:
        password.write(service.environment["POSTGRES_PASSWORD"] + "\n")
        password.flush()
        if user:
            _require_way(data)
            shutil.chown(data, user, user)
            shutil.chown(password.name, user)
        arguments = shlex.split(service.environment.get("POSTGRES_INITDB_ARGS", ""))
        done = subprocess.run(
            [program, "-D", str(data), "-U", "postgres", f"--pwfile={password.name}", *arguments],
            env=_without_secrets(service) | {"LC_ALL": "C.UTF-8"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
    if done.returncode:
        raise InputError(f"{data}: {(done.stderr.strip().splitlines() or ['initdb failed'])[-1]}")


def _require_way(folder: Path) -> None:
    """Another user has to get there."""
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001:
            raise InputError(f"{parent}: closed to other users, and PostgreSQL runs as one (not as root); see --state")


def _without_secrets(service: Service) -> dict[str, str]:
    return {name: value for name, value in service.environment.items() if not name.endswith("_PASSWORD")}


def _program(name: str, search: str) -> str:
    found = shutil.which(name, path=search)
    if found is None:
        raise InputError(f"{name} is missing: install PostgreSQL 14 or newer (Debian: apt-get install postgresql)")
    return found


def is_installed() -> bool:
    """Whether the programs this needs are here."""
    places = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), os.environ.get("PATH", os.defpath)]
    search = os.pathsep.join(places)
    return all(shutil.which(name, path=search) for name in ("initdb", "postgres", "psql", "pg_isready", "pg_dump"))
