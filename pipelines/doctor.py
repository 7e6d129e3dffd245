"""Is everything here that a run needs: versions that go together, accelerator, memory, disk, servers.

Every check is a small function that returns `Check`s; a finding that needs doing says what to do. The version
rules come from combinations that were seen to break although every package's own metadata allows them.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

PROBE_TIMEOUT_S = 3.0  # a server that answers no health check in this time is not usable for tracking either
GIB = 2**30
LINE = 110  # columns of the readable text
MIN_RAM_GIB = 4.0  # the demo's training peaks below 3 GiB
MIN_DISK_GIB = 5.0  # caches, checkpoints and the outputs of a 10 000² scene

Status = Literal["ok", "info", "warn", "fail"]
Lookup = Callable[[str], str | None]


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it stands, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Break:
    """Versions `low` ≤ v < `high` of `package` do harm, where `partner` is given only together with it."""

    package: str
    low: str
    high: str
    status: Status
    harm: str
    fix: str
    partner: str | None = None


STOLE = "these releases stole credentials"  # advisory GHSA-w37p-236h-pfx3
CHANGE_THEM = "remove it, and change the credentials of this machine"
HIDES = "another package named `adapters` hides this project's"
MLFLOW, PREFECT = 'install "mlflow>=3.17.2,<3.19"', 'install "prefect>=3.8.8,<3.10"'
ANY = "99999"

KNOWN_BREAKS = (
    Break("fastapi", "0.151", ANY, "fail", "prefect's server does not start",
          'install "fastapi>=0.139,<0.151"', "prefect"),
    Break("sqlalchemy", "2.1", ANY, "fail", "prefect's scheduler silently schedules nothing",
          'install "sqlalchemy>=2.0,<2.1"', "prefect"),
    Break("mlflow", "0", "3.17", "warn", "not tested below 3.17", MLFLOW),
    Break("mlflow", "3.19", ANY, "warn", "not tested from 3.19 on", MLFLOW),
    Break("prefect", "0", "3.8.8", "warn", "not tested below 3.8.8", PREFECT),
    Break("prefect", "3.10", ANY, "warn", "not tested from 3.10 on", PREFECT),
    Break("lightning", "2.6.2", "2.6.4", "fail", STOLE, CHANGE_THEM),
    Break("pytorch-lightning", "2.6.2", "2.6.4", "fail", STOLE, CHANGE_THEM),
    Break("adapters", "0", ANY, "fail", HIDES, "uninstall it, or use an environment of its own"),
)  # fmt: skip

STACK = (
    "torch", "torchvision", "timm", "segmentation-models-pytorch", "accelerate", "safetensors",
    "numpy", "scipy", "rasterio", "geopandas", "pyogrio", "pyarrow", "shapely", "pyproj",
    "prefect", "mlflow", "fastapi", "sqlalchemy", "pydantic", "typer", "rich", "jinja2", "psutil",
)  # fmt: skip


def examine() -> list[Check]:
    """All checks, in the order a reader cares. Takes the time of importing torch, and of two probes."""
    checks = [_python(), *versions(), *_accelerator(), _threads(), _memory(), *_disk(), *_geodata()]
    checks += [tracking(), prefect_server(os.environ), telemetry(os.environ)]
    return checks


def render(checks: list[Check]) -> str:
    """Readable text: a line a check (long ones wrapped), and below what to fix."""
    marks = {"ok": "ok  ", "info": "    ", "warn": "warn", "fail": "FAIL"}
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        first = f"{marks[check.status]}  {check.name:<{width}}  "
        lines += textwrap.wrap(check.found, LINE, initial_indent=first, subsequent_indent=" " * len(first))
    todo = [f"  {check.name}: {check.fix}" for check in checks if check.fix and check.status in ("warn", "fail")]
    return "\n".join([*lines, "", *(["To fix:", *todo] if todo else ["Nothing to fix."])])


def parse(version: str) -> tuple[int, ...]:
    """Release part of a version as numbers: `2.15.0+cu132` → (2, 15, 0)."""
    release = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else (0,)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(lookup: Lookup = _installed) -> list[Check]:
    """The stack's versions, what is missing, and the combinations known to break."""
    found = {package: lookup(package) for package in STACK}
    missing = [package for package, version in found.items() if version is None]
    there = ", ".join(f"{package} {version}" for package, version in found.items() if version)
    checks = [Check("packages", "ok", there)]
    if missing:
        checks.append(Check("packages", "fail", f"missing: {', '.join(missing)}", "`make setup` installs the lock"))
    for known in KNOWN_BREAKS:
        version = lookup(known.package)
        if version is None or (known.partner is not None and lookup(known.partner) is None):
            continue
        if parse(known.low) <= parse(version) < parse(known.high):
            checks.append(Check(known.package, known.status, f"{version}: {known.harm}", known.fix))
    return checks


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        return Check(
            "python", "warn", f"{version}, PYTHONDONTWRITEBYTECODE is set",
            "unset it: without compiled files every process recompiles torch",
        )  # fmt: skip
    return Check("python", "ok", f"{version} ({sys.executable})")


def _accelerator() -> list[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        fault = str(error).splitlines()[0]
        return [Check("torch", "fail", f"cannot be imported: {fault}", "`make setup` installs the lock")]
    from pipelines.devices import choose_device, choose_precision

    device = choose_device("auto")
    auto = str(choose_precision("auto", device)).removeprefix("torch.")
    checks = [Check("precision", "ok" if auto == "bfloat16" else "info", f"auto is {auto} on {device.type}")]
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            size = card.total_memory / GIB
            checks.append(Check("accelerator", "ok", f"cuda:{index} {card.name}, {size:.0f} GiB"))
    elif device.type != "cpu":
        checks.append(Check("accelerator", "ok", device.type))
    elif Path("/proc/driver/nvidia/version").exists():
        fix = f"torch is built for CUDA {torch.version.cuda}: update the driver or install a matching torch"
        checks.append(Check("accelerator", "warn", "an NVIDIA driver, but torch cannot use it", fix))
    else:
        checks.append(Check("accelerator", "info", "none: everything runs on the CPU"))
    return checks


def _threads() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    named = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    limits = "".join(f", {name}={value}" for name, value in named.items())
    return Check("threads", "ok", f"{usable} of {os.cpu_count()} cores usable{limits}")


def _memory() -> Check:
    import psutil

    free, limit = psutil.virtual_memory().available, _memory_limit()
    free = min(free, limit) if limit else free
    found = f"{free / GIB:.1f} GiB free" + (f" (this process may use {limit / GIB:.1f})" if limit else "")
    if free < MIN_RAM_GIB * GIB:
        return Check("memory", "warn", found, f"below {MIN_RAM_GIB:.0f} GiB: use a smaller --tile, batch 1")
    return Check("memory", "ok", found)


def _memory_limit() -> int | None:
    """Bytes a container may use, or None where nothing limits it (cgroup v2, then v1)."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 2**60:  # v1 writes a number near 2**63 for "no limit"
            return int(text)
    return None


def _disk() -> list[Check]:
    import tempfile

    checks = []
    for name, folder in (("disk", Path.cwd()), ("temporary disk", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free / GIB
        low = free < MIN_DISK_GIB
        fix = f"below {MIN_DISK_GIB:.0f} GiB: free some, or work elsewhere (TMPDIR moves the temporary files)"
        checks.append(Check(name, "warn" if low else "ok", f"{free:.0f} GiB free in {folder}", fix if low else ""))
    return checks


def _geodata() -> list[Check]:
    try:
        import pyproj
        import rasterio
    except (ImportError, OSError) as error:
        return [Check("rasterio", "fail", f"cannot be imported: {error}", "`make setup` installs the lock")]
    from rasterio.crs import CRS

    checks = [Check("gdal", "ok", f"{rasterio.__gdal_version__}, PROJ {pyproj.proj_version_str}")]
    try:
        CRS.from_epsg(32617)
        pyproj.CRS.from_epsg(32617)
    except (rasterio.errors.CRSError, pyproj.exceptions.CRSError) as error:
        named = ", ".join(f"{n}={os.environ[n]}" for n in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA") if n in os.environ)
        fix = f"unset {named}" if named else "`make setup` installs the lock again"
        checks.append(Check("coordinate systems", "fail", f"EPSG:32617 is not found: {error}", fix))
    return checks


USERINFO = re.compile(r"(?<=//)[^/@]*@")  # name and password of a URL


def probe(url: str, timeout: float = PROBE_TIMEOUT_S) -> str | None:
    """None where `url` answers 200 in time, otherwise why not. A health check needs no password."""
    try:
        with urllib.request.urlopen(USERINFO.sub("", url), timeout=timeout) as answer:
            return None if answer.status == 200 else f"answers {answer.status}"
    except urllib.error.HTTPError as error:
        return f"answers {error.code}"
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def tracking(uri: str | None = None) -> Check:
    """Whether MLflow's store can be reached; asked without mlflow, which waits 4 min for a dead server."""
    if uri is None:
        from pipelines.tracking_store import default_uri

        uri = default_uri()
    shown = USERINFO.sub("***@", uri)  # never a password in a report
    if uri.startswith(("http://", "https://")):
        began = time.perf_counter()
        fault = probe(f"{uri.rstrip('/')}/health")
        if fault:
            return Check(
                "tracking",
                "fail",
                f"{shown}: {fault}",
                "start the MLflow server or unset MLFLOW_TRACKING_URI",
            )
        return Check("tracking", "ok", f"{shown} answers in {1000 * (time.perf_counter() - began):.0f} ms")
    if uri.startswith("sqlite:"):
        path = Path(uri.removeprefix("sqlite:///"))
        folder = path.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            return Check("tracking", "fail", f"{shown}: {folder} is not a folder that can be written to",
                         "set MLFLOW_TRACKING_URI to another place")  # fmt: skip
        return Check("tracking", "ok", f"{shown} ({'there' if path.exists() else 'made at the first run'})")
    if "://" not in uri or uri.startswith("file:"):
        return Check("tracking", "fail", f"{shown}: MLflow no longer takes a folder of files",
                     "use sqlite:///mlflow.db; `mlflow migrate-filestore` moves old runs")  # fmt: skip
    return Check("tracking", "info", f"{shown}: not probed")


def prefect_server(environment: Mapping[str, str]) -> Check:
    """Whether the Prefect API answers, where one is named."""
    url = environment.get("PREFECT_API_URL")
    if not url:
        return Check("prefect", "info", "no PREFECT_API_URL: each run starts a small server of its own (about 6 s)")
    fault, shown = probe(f"{url.rstrip('/')}/health"), USERINFO.sub("***@", url)
    if fault:
        fix = "start `prefect server start`, or unset PREFECT_API_URL"
        return Check("prefect", "fail", f"{shown}: {fault}", fix)
    return Check("prefect", "ok", f"{shown} answers")


TELEMETRY = {
    "DO_NOT_TRACK": ("true",),  # MLflow takes nothing but the word `true`
    "PREFECT_SERVER_ANALYTICS_ENABLED": ("false", "0"),
    "MLFLOW_DISABLE_TELEMETRY": ("true",),
    "HF_HUB_DISABLE_TELEMETRY": ("1", "true"),
}


def telemetry(environment: Mapping[str, str]) -> Check:
    """Whether the dependencies' reports home are off; the command line switches them off for itself."""
    on = [name for name, off in TELEMETRY.items() if environment.get(name, "").lower() not in off]
    if on:
        fix = "export " + " ".join(f"{name}={TELEMETRY[name][0]}" for name in on)
        return Check("telemetry", "warn", "on or undecided: " + ", ".join(on), fix)
    return Check("telemetry", "ok", "off in every dependency")
