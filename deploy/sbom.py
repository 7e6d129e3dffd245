"""Bill of materials of the lock: `python -m deploy.sbom FILE` writes CycloneDX 1.6 JSON, the same for the same lock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def bill(lock: Path) -> dict[str, Any]:
    """The bill: every distribution of `lock` with version, package URL and hashes, and licences where installed here.

    Made by cyclonedx-py from the lock; licences come from what is installed (`deploy.licences`).
    """
    from deploy.licences import licence_of

    program = Path(sys.executable).with_name("cyclonedx-py")
    words = [str(program), "requirements", str(lock), "--output-reproducible", "--sv", "1.6", "--of", "JSON", "-o", "-"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    for component in found["components"]:
        component.pop("description", None)  # the lock's own line, hashes and all
        licence = licence_of(component["name"], component.get("version", ""))
        if licence:
            component["licenses"] = [{"license": {"name": licence}}]
    return found


def main() -> int:
    """0 where it was written."""
    Path(sys.argv[1]).write_text(json.dumps(bill(ROOT / "requirements.lock"), indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
