"""Rule `shadow`: both models over the last scenes, which have no labels, and how far they agree.

A better model disagrees here and there; one that agrees with the champion on less than half of what either finds has
changed its mind about the world, and somebody should look first. The report names where they differ most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.metrics import UNSEEN, f1_counts
from pipelines.picture_runs import PICTURES
from pipelines.promotion.outputs import Outputs
from pipelines.promotion.policy import Policy, Verdict
from pipelines.promotion.units import block_of
from pipelines.sources import open_for

Window = tuple[slice, slice]


def last_scenes(places: Sequence[str | Path], most: int) -> list[Path]:
    """The newest `most` files among `places`, files or folders of scenes. InputError for what is not there."""
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            files = [file for file in place.iterdir() if file.suffix.lower() in PICTURES and file.name[0] != "."]
            if not files:
                raise InputError(f"{place}: no scenes in the folder")
            found += files
        elif place.exists():
            found.append(place)
        else:
            raise InputError(f"{place}: no such file or folder")
    unique = list(dict.fromkeys(path.resolve() for path in found))
    return sorted(unique, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)[:most]


def windows_of(scenes: Sequence[Path], adapter: DomainAdapter, side: int) -> Iterator[tuple[Path, Window]]:
    """The middle of each scene, at most `side` pixels a side."""
    for path in scenes:
        with open_for(path, adapter) as source:
            yield path, (_middle(source.shape[0], side), _middle(source.shape[1], side))


def compare(
    scenes: Sequence[tuple[Path, Window]],
    candidate: Callable[[Path, Window], Outputs],
    champion: Callable[[Path, Window], Outputs] | None,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """The agreement report: a row a scene, JSON-ready."""
    rows = []
    for path, window in scenes:
        mine = candidate(path, window)
        row: dict[str, Any] = {"scene": path.name, "window": [[part.start, part.stop] for part in window]}
        row["candidate"] = _found(mine, names)
        if champion is not None:
            theirs = champion(path, window)
            row["champion"] = _found(theirs, names)
            row |= _agreement(mine, theirs, window, len(names))
        rows.append(row)
    return rows


def check_shadow(rows: Sequence[dict[str, Any]], policy: Policy) -> Verdict:
    """Agreement over all scenes together at least the policy's."""
    numbers = {"scenes": list(rows)}
    if not rows:
        return Verdict("shadow", True, "no scenes to run on", numbers)
    if "pixels" not in rows[0]:
        objects = sum(row["candidate"]["objects"] for row in rows)
        return Verdict("shadow", True, f"{len(rows)} scenes, {objects} objects; no champion to agree with", numbers)
    found, same = (sum(row["pixels"][key] for row in rows) for key in ("either", "same"))
    agreement = same / found if found else 1.0
    worst = min(rows, key=lambda row: row["agreement"])
    says = (
        f"{len(rows)} scenes, {100 * agreement:.1f} % agreement with the champion, least in {worst['scene']} "
        f"({100 * worst['agreement']:.1f} %, worst around row and column {worst['worst']})"
    )
    passed = agreement >= policy.agreement
    if not passed:
        says += f"; allowed is {100 * policy.agreement:g} % or more"
    return Verdict("shadow", passed, says, numbers | {"agreement": agreement})


def _agreement(mine: Outputs, theirs: Outputs, window: Window, classes: int) -> dict[str, Any]:
    """Pixels of the same class, of those to which either gives one; F1 of the objects; where they differ most."""
    seen = (mine.ids != UNSEEN) & (theirs.ids != UNSEEN)
    either = seen & ((mine.ids > 0) | (theirs.ids > 0))
    same = either & (mine.ids == theirs.ids)
    counts = f1_counts(mine.objects, theirs.objects, classes).total()
    pixels = {"either": int(either.sum()), "same": int(same.sum())}
    return {
        "pixels": pixels,
        "agreement": pixels["same"] / pixels["either"] if pixels["either"] else 1.0,
        "objects_f1": float(counts.f1()[0]) if len(mine.objects) + len(theirs.objects) else None,
        "worst": _worst(either & ~same, window),
    }


def _worst(differs: NDArray[np.bool_], window: Window) -> list[int] | None:
    """Middle (row, column of the scene) of the block with most pixels that differ."""
    if not differs.any():
        return None
    blocks = block_of((differs.shape[0], differs.shape[1]))
    block = np.bincount(blocks[differs]).argmax()
    middle = np.argwhere(blocks == block).mean(0)
    return [int(part.start + place) for part, place in zip(window, middle, strict=True)]


def _found(outputs: Outputs, names: Sequence[str]) -> dict[str, Any]:
    pixels = np.bincount(outputs.ids.ravel(), minlength=256)
    return {"objects": len(outputs.objects), "pixels": {name: int(pixels[i + 1]) for i, name in enumerate(names)}}


def _middle(length: int, most: int) -> slice:
    start = max(0, (length - most) // 2)
    return slice(start, min(length, start + most))
