"""The Dockerfile's steps as a script, in a clean folder of this machine: `python -m deploy.image_steps FOLDER`.

There is no Docker engine here to build with, so the instructions are carried out one by one: COPY copies what
.dockerignore lets through, RUN runs in a shell, with the image's absolute paths moved into the folder. Three things
are not as in a build. The system's packages are only looked up (`apt-get install --simulate`). The base image is this
machine's Python. And uv links files from its cache instead of loading 7 GB anew, and leaves byte-compiling out.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOVED = ("/app", "/opt/venv", "/cache", "/artifacts", "/data", "/results")
HERE_ONLY = {"UV_NO_CACHE": "0", "UV_COMPILE_BYTECODE": "0", "UV_LINK_MODE": "hardlink"}
KEPT = ("PATH", "LANG", "UV_CACHE_DIR", "SSL_CERT_FILE")
INDEX = re.compile(r"(UV|PIP)_(DEFAULT_INDEX|INDEX_URL|FIND_LINKS|CERT|EXTRA_INDEX_URL|INDEX|CONFIG_FILE)")


@dataclass(frozen=True)
class Step:
    """One instruction: its word and what follows, continuation lines joined."""

    word: str
    text: str


def steps(dockerfile: str) -> list[Step]:
    """The instructions of a Dockerfile, comments left out."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Step(*map(str.strip, line.split(None, 1))) for line in joined.splitlines()]


def environment_of(dockerfile: str) -> dict[str, str]:
    """What ENV sets, build arguments not filled in."""
    found: dict[str, str] = {}
    for step in steps(dockerfile):
        if step.word == "ENV":
            found |= dict(part.split("=", 1) for part in shlex.split(step.text))
    return found


def context(root: Path = ROOT) -> list[str]:
    """Files that `COPY . ./` takes: what git knows or would, as far as .dockerignore lets it through."""
    words = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    rules = [
        line.strip()
        for line in (root / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return [name for name in files if (root / name).is_file() and not _is_ignored(name, rules)]


@dataclass
class Build:
    """A build in `folder`; `log` says what was done with each step."""

    folder: Path
    cwd: Path = field(init=False)
    environment: dict[str, str] = field(init=False)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cwd = self.folder
        kept = {n: v for n, v in os.environ.items() if n in KEPT or INDEX.fullmatch(n)}
        cache = {"UV_CACHE_DIR": str(Path.home() / ".cache" / "uv")}  # HOME is the image's from here on
        self.environment = cache | kept

    def run(self, dockerfile: str) -> None:
        """All steps; CalledProcessError where one fails."""
        for step in steps(dockerfile):
            getattr(self, f"_{step.word.lower()}")(step.text)
            self.log.append(f"{step.word} {step.text[:70]}")

    def _from(self, text: str) -> None:
        wanted = text.partition(":")[2].partition("-")[0]
        if wanted != f"{sys.version_info.major}.{sys.version_info.minor}":
            raise ValueError(f"the image has Python {wanted}, this is {sys.version.split()[0]}")

    def _env(self, text: str) -> None:
        for part in shlex.split(text):
            name, value = part.split("=", 1)
            expanded = re.sub(r"\$(\w+)", lambda found: self.environment.get(found[1], ""), value)
            self.environment[name] = self._moved(expanded)
        self.environment |= HERE_ONLY

    def _arg(self, text: str) -> None:
        name, _, value = text.partition("=")
        self.environment.setdefault(name, value)

    def _workdir(self, text: str) -> None:
        self.cwd = Path(self._moved(text))
        self.cwd.mkdir(parents=True, exist_ok=True)

    def _copy(self, text: str) -> None:
        *sources, target = text.split()
        allowed = context()
        for source in sources:
            chosen = allowed if source == "." else [name for name in allowed if name == source]
            if not chosen:
                raise FileNotFoundError(f"COPY {source}: not in the build's context")
            for name in chosen:
                place = self.cwd / target / (name if source == "." else Path(name).name)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, place)

    def _run(self, text: str) -> None:
        if text.startswith("apt-get "):
            packages = re.findall(r"(?<=\s)lib[\w.+-]+|zlib1g", text)
            text = (
                f"apt-cache show {' '.join(packages)} >/dev/null && apt-get install --simulate -qq {' '.join(packages)}"
            )
        subprocess.run(
            ["sh", "-ec", self._moved(text)],
            cwd=self.cwd,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        )

    def _user(self, text: str) -> None:
        if text.split(":")[0] in {"0", "root"}:
            raise ValueError("the image must not run as root")

    def _cmd(self, text: str) -> None:
        self._run(shlex.join(json.loads(text)))

    def _moved(self, text: str) -> str:
        for place in MOVED:
            text = re.sub(rf"(?<![\w./-]){re.escape(place)}(?=[/:\s]|$)", f"{self.folder}{place}", text)
        return text


def _is_ignored(name: str, rules: list[str]) -> bool:
    """Docker's rule: the last pattern that matches the file or a folder above it decides."""
    ignored = False
    parts = Path(name).parts
    prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for rule in rules:
        pattern = rule.removeprefix("!").strip("/")
        anywhere = pattern.startswith("**/")
        names = parts if anywhere else [p for p in prefixes if p.count("/") == pattern.count("/")]
        if any(fnmatch.fnmatchcase(one, pattern.removeprefix("**/")) for one in names):
            ignored = not rule.startswith("!")
    return ignored


def main() -> int:
    """0 where every step went through."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    build = Build(folder)
    try:
        build.run((ROOT / "Dockerfile").read_text())
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"failed: {error.cmd[-1]}\n{error.stdout}{error.stderr}\n")
        return 1
    sys.stdout.write("\n".join(build.log) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
