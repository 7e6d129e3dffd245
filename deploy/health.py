"""Health check without curl: `python -m deploy.health URL` ends with 0 where URL answers 200, else with 1."""

import sys
import urllib.request

TIMEOUT_S = 4.0


def is_healthy(url: str) -> bool:
    """Whether `url` answers 200 in time."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):  # URLError is an OSError
        return False


if __name__ == "__main__":
    sys.exit(0 if is_healthy(sys.argv[1]) else 1)
