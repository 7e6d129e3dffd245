"""Count what is on many pictures: a folder a picture, counts.csv over all of them, only new pictures counted.

A picture's folder holds overlay.jpg, density.png, points.csv (points.geojson too where the picture has a CRS) and
count.json, its record. It appears whole or not at all, so a killed run, or two at once, leave nothing half-written;
counts.csv, report.html and run.json are made of the records there are, and can be made again at any time.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import PredictOptions
from pipelines.manifest import Stopwatch, peak_rss_bytes
from pipelines.provenance import versions
from pipelines.sinks.folder import OutputFolder, alone_in, atomic_write, sha256

log = logging.getLogger(__name__)
Progress = Callable[..., None]  # (stage, done, total)

RECORD = "count.json"
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".jp2", ".vrt", ".npy", ".npz"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
DIGITS = 3  # of expected counts


@dataclass(frozen=True)
class CountRun:
    """What a run left: records of all pictures in `out`, how many were new, and why pictures failed (name → line)."""

    out: Path
    records: list[dict[str, Any]]
    fresh: int
    failed: dict[str, str]


def pictures_of(place: str | Path) -> list[tuple[str, Path]]:
    """The picture itself, or the pictures of a folder (not of its folders), sorted: (name, path).

    InputError for a video: no reader for frames is among the dependencies (PyAV would be the one); this is where its
    frames would come in, named `<video>#<frame>`.
    """
    place = Path(place)
    if place.is_dir():
        files = pictures_in(place)
        if not files:
            raise InputError(f"{place}: no pictures in the folder; expected {', '.join(sorted(PICTURES))}")
    elif place.exists():
        files = [place]
    else:
        raise InputError(f"{place}: no such file or folder")
    if len(files) == 1 and files[0].suffix.lower() in VIDEOS:
        _no_video(files[0])
    return [(file.name, file) for file in files]


def pictures_in(folder: Path) -> list[Path]:
    """The pictures and videos of a folder, sorted; hidden files are not seen."""
    shown = [file for file in folder.iterdir() if not file.name.startswith(".")]
    return sorted(file for file in shown if file.suffix.lower() in PICTURES | VIDEOS)


def count_pictures(
    model: str | Path,
    place: str | Path,
    out: str | Path,
    options: PredictOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> CountRun:
    """Count every picture of `place` that `out` has no record of; leaves counts.csv, report.html, run.json in `out`.

    A picture that cannot be counted is named in the result and in run.json, and the others go on. InputError where
    none could be, and where `out` holds counts of another model or other options (`overwrite` counts all again).
    """
    out, watch = Path(out), Stopwatch()
    bundle = load_bundle(model)
    pictures = pictures_of(place)
    settled = _settled(bundle, options or PredictOptions())
    with alone_in(out):
        return _count_new(bundle, str(model), pictures, out, settled, overwrite, watch, on_progress)


def _count_new(
    bundle: Bundle,
    model: str,
    pictures: Sequence[tuple[str, Path]],
    out: Path,
    settled: PredictOptions,
    overwrite: bool,
    watch: Stopwatch,
    on_progress: Progress | None,
) -> CountRun:
    key, known = _key(bundle, settled), read_records(out)
    stale = [record for record in known.values() if record["key"] != key]
    if stale and not overwrite:
        raise InputError(
            f"{out}: holds counts by another model or other options ({stale[0]['image']}); give another --out, or "
            "--overwrite to count again"
        )
    with watch.stage("look"):
        wanted = [
            (name, path) for name, path in pictures if overwrite or not _is_counted(known.get(name), path, name, out)
        ]
    failed: dict[str, str] = {}
    try:
        with watch.stage("count"):
            _count_all(wanted, bundle, settled, key, out, failed, on_progress)
    finally:
        records = list(read_records(out).values())
        if records:
            with watch.stage("report"):
                _write_summary(out, records, bundle, model, settled, failed, watch)
    if failed and not records:
        raise InputError(next(iter(failed.values())))
    return CountRun(out, records, len(wanted) - len(failed), failed)


def read_records(out: Path) -> dict[str, dict[str, Any]]:
    """The finished pictures of `out` by name, in the names' order. A record that cannot be read is none."""
    records = {}
    for file in sorted(out.glob(f"*/{RECORD}")):
        if file.parent.name.startswith("."):
            continue
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            records[str(record["image"])] = {**record, "folder": file.parent.name}
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s: not a record of a count; the picture is counted again", file)
    return dict(sorted(records.items()))


def _count_all(
    wanted: Sequence[tuple[str, Path]],
    bundle: Bundle,
    options: PredictOptions,
    key: str,
    out: Path,
    failed: dict[str, str],
    on_progress: Progress | None,
) -> None:
    from pipelines.counting import Counter

    counter = Counter(bundle.build(), bundle.adapter, options) if wanted else None
    replaced = {name: record["folder"] for name, record in read_records(out).items()}
    for done, (name, path) in enumerate(wanted, start=1):
        assert counter is not None
        try:
            if path.suffix.lower() in VIDEOS:
                _no_video(path)
            _count_one(name, path, counter, bundle, key, out, replaced.get(name))
        except InputError as error:
            failed[name] = str(error)
            log.info("%s: not counted: %s", name, error)
        if on_progress:
            on_progress("pictures", done, len(wanted))


def _count_one(name: str, path: Path, counter: Any, bundle: Bundle, key: str, out: Path, replaced: str | None) -> None:
    """Count one picture into its folder: the one it has, where it is counted again, else one of its own."""
    from pipelines.count_files import write_picture_files
    from pipelines.sources import open_for

    stat = path.stat()
    with open_for(path, bundle.adapter) as source:
        digest = source.digest()
        result = counter.count(source)
        with OutputFolder(out, replaced or path.stem, overwrite=replaced is not None) as folder:
            write_picture_files(folder.path, source, result, bundle.adapter.classes)
            low, high = result.interval
            labels = result.objects.labels.tolist()
            record = {
                "image": name,
                "sha256": digest,
                "bytes": stat.st_size,
                "modified_ns": stat.st_mtime_ns,
                "key": key,
                "shape": list(source.shape),
                "count": result.count,
                "expected": round(result.expected, DIGITS),
                "interval_90": [round(low, DIGITS), round(high, DIGITS)],
                "classes": {c: labels.count(i) for i, c in enumerate(bundle.adapter.classes.names)},
                "crops": result.crops,
                "splits": result.splits,
                "full": [full.to_dict() for full in result.full],
                "ambiguous_links": result.ambiguous_links,
            }
            (folder.path / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            folder.commit()


def _is_counted(record: dict[str, Any] | None, path: Path, name: str, out: Path) -> bool:
    """Whether the record is about this very file: by size and time, and where the time moved by its bytes."""
    if record is None:
        return False
    stat = path.stat()
    if stat.st_size != record["bytes"]:
        return False
    return stat.st_mtime_ns == record["modified_ns"] or sha256(path) == record["sha256"]


def _settled(bundle: Bundle, options: PredictOptions) -> PredictOptions:
    from pipelines.predictor import settle

    if not any(bundle.adapter.classes.is_thing):
        raise InputError(f"{bundle.folder}: the model knows no things, so there is nothing to count")
    if options.aoi:
        raise InputError("count: an area of interest is not supported; predict with --aoi has a row an object")
    return settle(options.model_copy(update={"task": "instance"}), bundle.adapter, bundle.thresholds)


def _key(bundle: Bundle, options: PredictOptions) -> str:
    settings = {"model": bundle.digest, "options": options.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _no_video(path: Path) -> None:
    raise InputError(
        f"{path}: a video; frames are not read yet, so write them out as pictures (ffmpeg) and count those"
    )


def write_counts(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """counts.csv: a row a picture in the names' order; equal counts give equal bytes."""
    names = list(records[0]["classes"]) if records else []
    head = ["image", "count", "expected", "low_90", "high_90", "width", "height", "full_crops", "sha256"]
    several = names if len(names) > 1 else []
    with atomic_write(path) as temporary, Path(temporary).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*head, *several])
        for r in records:
            low, high = r["interval_90"]
            height, width = r["shape"]
            facts = [r["image"], r["count"], r["expected"], low, high, width, height, len(r["full"]), r["sha256"]]
            rows.writerow([*facts, *(r["classes"][name] for name in several)])


def _write_summary(
    out: Path,
    records: Sequence[dict[str, Any]],
    bundle: Bundle,
    model: str,
    options: PredictOptions,
    failed: dict[str, str],
    watch: Stopwatch,
) -> None:
    from pipelines.count_report import write_count_report

    write_counts(out / "counts.csv", records)
    notes = [f"{name}: {line}" for name, line in failed.items()]
    full = [record["image"] for record in records if record["full"]]
    if full:
        notes.append(
            f"{len(full)} pictures have crops with more objects than the model has queries even at the smallest crop, "
            f"where the count is a lower bound: {', '.join(full[:5])}{' …' if len(full) > 5 else ''}"
        )
    write_count_report(out / "report.html", out, records, model, notes)
    manifest = {
        "version": version("maskbridge"),
        "model": {"name": model, "version": bundle.version, "sha256": bundle.sha256},
        "parameters": options.model_dump(mode="json"),
        "points": None if bundle.adapter.points is None else bundle.adapter.points.to_dict(),
        "pictures": len(records),
        "count": sum(record["count"] for record in records),
        "expected": round(sum(record["expected"] for record in records), DIGITS),
        "full": {record["image"]: record["full"] for record in records if record["full"]},
        "failed": failed,
        "warnings": notes,
        "timings_s": watch.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "outputs": {name: sha256(out / name) for name in ("counts.csv", "report.html")},
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with atomic_write(out / "run.json") as temporary:
        Path(temporary).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
