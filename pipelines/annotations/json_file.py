"""JSON label files, parsed once: one file speaks of thousands of pictures."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapters.errors import InputError


def load_json(path: Path) -> Any:
    """The file's content, kept while the file stays as it is. InputError where it is missing or no JSON."""
    try:
        stat = path.stat()
    except OSError:
        raise InputError(f"{path}: no such file") from None
    return _load(path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=2)
def _load(path: Path, _stamp: tuple[int, int]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON that can be read: {' '.join(str(error).split())}") from None
