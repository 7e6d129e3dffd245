"""A Prefect worker that leaves no zombies: `python -m deploy.worker --limit 1`.

Prefect's worker, told to stop, kills its runs and leaves them `Running` with their concurrency slot. Here the worker
is a child; when it has ended, for whatever reason, the runs it left are reaped at once, and go on elsewhere.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from types import FrameType

WORKER = ("prefect", "worker", "start", "--pool", "maskbridge", "--type", "process", "--with-healthcheck")
REAP = (sys.executable, "-m", "flows.reap")
REAP_S = 30


def main(arguments: list[str]) -> int:
    """Run a worker until it ends or a signal comes, then reap. Returns the worker's exit code."""
    # A shell's background job ignores SIGINT, and Prefect turns TERM into it: the first signal would do nothing.
    worker = subprocess.Popen([*WORKER, *arguments], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def forward(number: int, frame: FrameType | None) -> None:
        worker.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    code = worker.wait()
    try:
        subprocess.run(REAP, timeout=REAP_S, check=False)
    except subprocess.TimeoutExpired:  # the server is away; the deployment `reap` does it later
        sys.stderr.write("runs of this worker were not reaped: the server does not answer\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
