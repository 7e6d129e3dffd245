"""Tell the servers what they must know before work starts: pools, deployments, automations. Safe to repeat."""

from __future__ import annotations

import os
import subprocess
import sys

POOL = "maskbridge"


def main() -> int:
    """0 once all is registered; the first command that fails ends it with its own code and output."""
    _run("prefect", "work-pool", "create", POOL, "--type", "process", "--overwrite")
    _run("prefect", "--no-prompt", "deploy", "--all")
    _run(sys.executable, "-m", "flows.reap", "--watch")
    if os.environ.get("NOTIFY_WEBHOOK"):
        _run(sys.executable, "-m", "flows.notifications")
    return 0


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
