"""A run over many pictures: a folder a picture, only new pictures worked on, one bad picture does not stop the others.

A picture's folder appears whole or not at all, with its record in it, so a killed run, or two at once, leave nothing
half-written; what is written over all pictures is made of the records there are, and can be made again at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.bundle import Bundle
from pipelines.config import PredictOptions
from pipelines.manifest import Stopwatch
from pipelines.sinks.folder import OutputFolder, alone_in, sha256
from pipelines.sources.video import SUFFIXES as VIDEOS

log = logging.getLogger(__name__)
Progress = Callable[..., None]  # (stage, done, total)

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".jp2", ".vrt", ".npy", ".npz"}


@dataclass(frozen=True)
class PictureRun:
    """What a run left: records of all pictures in `out`, how many were new, and why pictures failed (name → line)."""

    out: Path
    records: list[dict[str, Any]]
    fresh: int
    failed: dict[str, str]


class PictureJob(ABC):
    """What is done to each picture, and to all records in the end. Equal keys give equal results."""

    record: str  # name of the record in a picture's folder
    adapter: DomainAdapter
    key: str

    @abstractmethod
    def one(self, source: Any, folder: Path) -> dict[str, Any]:
        """Work on one picture: files into `folder`, and what its record says of the result."""

    def film(self, path: Path, folder: Path) -> dict[str, Any]:
        """Work on a video; as `one`, and with its `shape`."""
        raise InputError(f"{path}: a video, and only counting takes videos; write its frames out as pictures")

    @abstractmethod
    def summarise(self, run: PictureRun, watch: Stopwatch) -> None:
        """Write what is written over all pictures."""


def run_pictures(
    job: PictureJob,
    pictures: Sequence[tuple[str, Path]],
    out: str | Path,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> PictureRun:
    """Do `job` to every picture (name, path) that `out` has no record of.

    A picture that fails with an InputError is named in the result and the others go on. InputError where none
    succeeded, and where `out` holds results of another model or other options (`overwrite` makes all anew).
    """
    out, watch = Path(out), Stopwatch()
    with alone_in(out):
        known = read_records(out, job.record)
        stale = [record for record in known.values() if record["key"] != job.key]
        if stale and not overwrite:
            raise InputError(
                f"{out}: holds results of another model or other options ({stale[0]['image']}); give another --out, or "
                "--overwrite to make them again"
            )
        with watch.stage("look"):
            wanted = [(name, path) for name, path in pictures if overwrite or not _is_done(known.get(name), path)]
        failed: dict[str, str] = {}
        try:
            with watch.stage("work"):
                for done, (name, path) in enumerate(wanted, start=1):
                    try:
                        _one(job, name, path, out, known.get(name))
                    except InputError as error:
                        failed[name] = str(error)
                        log.info("%s: %s", name, error)
                    if on_progress:
                        on_progress("pictures", done, len(wanted))
        finally:
            records = list(read_records(out, job.record).values())
            run = PictureRun(out, records, len(wanted) - len(failed), failed)
            if records:
                job.summarise(run, watch)
        if failed and not records:
            raise InputError(next(iter(failed.values())))
        return run


def pictures_of(place: str | Path) -> list[tuple[str, Path]]:
    """The picture itself, or the pictures of a folder (not of its folders), sorted: (name, path)."""
    place = Path(place)
    if place.is_dir():
        files = pictures_in(place)
        if not files:
            raise InputError(f"{place}: no pictures in the folder; expected {', '.join(sorted(PICTURES))}")
    elif place.exists():
        files = [place]
    else:
        raise InputError(f"{place}: no such file or folder")
    return [(file.name, file) for file in files]


def pictures_in(folder: Path) -> list[Path]:
    """The pictures and videos of a folder, sorted; hidden files are not seen."""
    shown = [file for file in folder.iterdir() if not file.name.startswith(".")]
    return sorted(file for file in shown if file.suffix.lower() in PICTURES | VIDEOS)


def read_records(out: Path, record: str) -> dict[str, dict[str, Any]]:
    """The finished pictures of `out` by name, in the names' order. A record that cannot be read is none."""
    records = {}
    for file in sorted(out.glob(f"*/{record}")):
        if file.parent.name.startswith("."):
            continue
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            records[str(held["image"])] = {**held, "folder": file.parent.name}
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s: not a record of a picture; it is worked on again", file)
    return dict(sorted(records.items()))


def key_of(bundle: Bundle, options: PredictOptions) -> str:
    """Digest of the model and all options."""
    settings = {"model": bundle.digest, "options": options.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _one(job: PictureJob, name: str, path: Path, out: Path, record: dict[str, Any] | None) -> None:
    """One picture into its folder: the one it has, where it is done again, else one of its own."""
    stat = path.stat()
    replaced = None if record is None else record["folder"]
    with OutputFolder(out, replaced or path.stem, overwrite=replaced is not None) as folder:
        facts = {
            "image": name,
            "sha256": sha256(path),
            "bytes": stat.st_size,
            "modified_ns": stat.st_mtime_ns,
            "key": job.key,
            **_work(job, path, folder.path),
        }
        (folder.path / job.record).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        folder.commit()


def _work(job: PictureJob, path: Path, folder: Path) -> dict[str, Any]:
    if path.suffix.lower() in VIDEOS:
        return job.film(path, folder)
    from pipelines.sources import open_for

    with open_for(path, job.adapter) as source:
        return {"shape": list(source.shape), **job.one(source, folder)}


def _is_done(record: dict[str, Any] | None, path: Path) -> bool:
    """Whether the record is about this very file: by size and time, and where the time moved by its bytes."""
    if record is None:
        return False
    stat = path.stat()
    if stat.st_size != record["bytes"]:
        return False
    return stat.st_mtime_ns == record["modified_ns"] or sha256(path) == record["sha256"]
