"""Write .env with fresh random passwords: `python -m deploy.environment --data DIR --results DIR [--file .env]`.

`--rotate` draws new passwords in a file that is there; docs/operations.md says what to do then.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
from pathlib import Path

EXAMPLE = Path(__file__).with_name("env.example")
PASSWORD = re.compile(r"_(PASSWORD|KEY)$")


def fresh(data: Path, results: Path, settings: dict[str, str] | None = None) -> str:
    """The text of env.example with its passwords drawn (24 random bytes each) and its folders filled in.

    `settings` replaces or adds values by name.
    """
    given = {
        "MASKBRIDGE_DATA": str(data.resolve()),
        "MASKBRIDGE_RESULTS": str(results.resolve()),
        "MASKBRIDGE_USER": f"{os.getuid()}:{os.getgid()}",
        "OBJECT_STORE_USER": "maskbridge",
        **(settings or {}),
    }
    lines = []
    for line in EXAMPLE.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            if name in given:
                value = given.pop(name)
            elif not value and PASSWORD.search(name):
                value = secrets.token_urlsafe(24)
            line = f"{name}={value}"
        lines.append(line)
    return "\n".join([*lines, *(f"{name}={value}" for name, value in given.items())]) + "\n"


def write(file: Path, text: str) -> None:
    """Write for the owner alone; FileExistsError where there is one already."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as opened:
        opened.write(text)


def rotate(file: Path) -> None:
    """Draw every password of `file` anew, in one step; all else stays. The old ones are gone: back up first."""
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines):
        name, equals, _ = line.partition("=")
        if equals and not line.startswith("#") and PASSWORD.search(name):
            lines[number] = f"{name}={secrets.token_urlsafe(24)}"
    temporary = file.with_name(f"{file.name}.new")
    temporary.unlink(missing_ok=True)
    write(temporary, "\n".join(lines) + "\n")
    temporary.replace(file)


def main() -> int:
    """0 where the file was written."""
    parser = argparse.ArgumentParser(prog="python -m deploy.environment", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of scenes and studies; runs only read it")
    parser.add_argument("--results", type=Path, help="folder for results")
    parser.add_argument("--file", type=Path, default=Path(".env"))
    parser.add_argument("--rotate", action="store_true", help="draw new passwords in the file that is there")
    given = parser.parse_args()
    if not given.rotate and not (given.data and given.results):
        parser.error("--data and --results are needed")
    try:
        if given.rotate:
            rotate(given.file)
            return 0
        for folder in (given.data, given.results):
            folder.mkdir(parents=True, exist_ok=True)
        write(given.file, fresh(given.data, given.results))
    except FileExistsError:
        sys.stderr.write(f"{given.file} is there already; passwords in use are not thrown away\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
