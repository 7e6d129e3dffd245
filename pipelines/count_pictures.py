"""Count what is on many pictures: a folder a picture, counts.csv over all of them, only new pictures counted.

A picture's folder holds overlay.jpg, density.png, points.csv (points.geojson too where the picture has a CRS) and
count.json, its record (`pipelines.picture_runs`); counts.csv, report.html and run.json are made of the records. A
video is looked at every so many seconds: its row is its fullest frame, frames.csv and over_time.svg have them all.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import PredictOptions
from pipelines.manifest import Stopwatch, peak_rss_bytes
from pipelines.picture_runs import PictureJob, PictureRun, Progress, key_of, pictures_of, run_pictures
from pipelines.provenance import versions
from pipelines.sinks.folder import atomic_write, sha256

DIGITS = 3  # of expected counts
EVERY = 1.0  # s: people do not change places faster


def count_pictures(
    model: str | Path,
    place: str | Path,
    out: str | Path,
    options: PredictOptions | None = None,
    *,
    every: float = EVERY,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> PictureRun:
    """Count every picture of `place` that `out` has no record of; leaves counts.csv, report.html, run.json in `out`.

    A picture that cannot be counted is named in the result and in run.json, and the others go on. InputError where
    none could be, and where `out` holds counts of another model or other options (`overwrite` counts all again).
    every: seconds of a video from one frame that is looked at to the next.
    """
    bundle = load_bundle(model)
    pictures = pictures_of(place)
    job = CountJob(bundle, str(model), _settled(bundle, options or PredictOptions()), every)
    return run_pictures(job, pictures, out, overwrite=overwrite, on_progress=on_progress)


class CountJob(PictureJob):
    """Counting as a job over pictures; the model is built when the first of them is worked on."""

    record = "count.json"

    def __init__(self, bundle: Bundle, model: str, options: PredictOptions, every: float = EVERY) -> None:
        self.bundle, self.model, self.options, self.every = bundle, model, options, every
        self.adapter = bundle.adapter
        self.key = key_of(bundle, options)

    @cached_property
    def counter(self) -> Any:
        from pipelines.counting import Counter

        return Counter(self.bundle.build(), self.adapter, self.options)

    def one(self, source: Any, folder: Path) -> dict[str, Any]:
        from pipelines.count_files import write_picture_files

        result = self.counter.count(source)
        write_picture_files(folder, source, result, self.adapter.classes)
        return self._facts(result)

    def film(self, path: Path, folder: Path) -> dict[str, Any]:
        from pipelines.count_files import write_picture_files
        from pipelines.count_report import chart
        from pipelines.sources import with_contrast
        from pipelines.sources.video import FrameSource, frames

        rows: list[dict[str, Any]] = []
        broken, fullest = 0, -1
        for frame in frames(path, self.every):
            if frame.pixels is None:
                broken += 1
                continue
            source = with_contrast(FrameSource(path, frame.pixels, self.adapter.channels), self.adapter)
            result = self.counter.count(source)
            place = {"image": f"{path.name}#{frame.seconds:.2f}s", "shape": list(source.shape), "sha256": ""}
            rows.append({**place, "seconds": round(frame.seconds, 3), **self._facts(result)})
            if result.count > fullest:
                fullest = result.count
                write_picture_files(folder, source, result, self.adapter.classes)
        write_counts(folder / "frames.csv", rows)
        (folder / "over_time.svg").write_text(str(chart(rows)), encoding="utf-8")
        best = max(rows, key=lambda row: row["count"])
        counts = [row["count"] for row in rows]
        film = {"frames": len(rows), "every_s": self.every, "fullest_at_s": best["seconds"], "broken": broken}
        return {
            **{key: value for key, value in best.items() if key not in ("image", "sha256", "seconds")},
            "video": {**film, "mean": round(sum(counts) / len(counts), DIGITS)},
        }

    def _facts(self, result: Any) -> dict[str, Any]:
        low, high = result.interval
        labels = result.objects.labels.tolist()
        return {
            "count": result.count,
            "expected": round(result.expected, DIGITS),
            "interval_90": [round(low, DIGITS), round(high, DIGITS)],
            "classes": {name: labels.count(i) for i, name in enumerate(self.adapter.classes.names)},
            "crops": result.crops,
            "splits": result.splits,
            "full": [full.to_dict() for full in result.full],
            "ambiguous_links": result.ambiguous_links,
        }

    def summarise(self, run: PictureRun, watch: Stopwatch) -> None:
        with watch.stage("report"):
            _write_summary(self, run, watch)


def _film_note(film: dict[str, Any]) -> str:
    """One line on a video."""
    broken = f"; {film['broken']} packets could not be decoded" if film["broken"] else ""
    return (
        f"a video; {film['frames']} frames were looked at, its row is the fullest, at {film['fullest_at_s']:g} s (mean "
        f"{film['mean']:g}){broken}"
    )


def _settled(bundle: Bundle, options: PredictOptions) -> PredictOptions:
    from pipelines.predictor import settle

    if not any(bundle.adapter.classes.is_thing):
        raise InputError(f"{bundle.folder}: the model knows no things, so there is nothing to count")
    if options.aoi:
        raise InputError("count: an area of interest is not supported; predict with --aoi has a row an object")
    return settle(options.model_copy(update={"task": "instance"}), bundle.adapter, bundle.thresholds)


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


def _write_summary(job: CountJob, run: PictureRun, watch: Stopwatch) -> None:
    from pipelines.count_report import write_count_report

    out, records, bundle = run.out, run.records, job.bundle
    write_counts(out / "counts.csv", records)
    notes = [f"{name}: {line}" for name, line in run.failed.items()]
    full = [record["image"] for record in records if record["full"]]
    if full:
        notes.append(
            f"{len(full)} pictures have crops with more objects than the model has queries even at the smallest crop, "
            f"where the count is a lower bound: {', '.join(full[:5])}{' …' if len(full) > 5 else ''}"
        )
    films = {record["image"]: record["video"] for record in records if "video" in record}
    notes += [f"{name}: {_film_note(film)}" for name, film in films.items()]
    write_count_report(out / "report.html", out, records, job.model, notes)
    manifest = {
        "version": version("maskbridge"),
        "model": {"name": job.model, "version": bundle.version, "sha256": bundle.sha256},
        "parameters": job.options.model_dump(mode="json"),
        "points": None if bundle.adapter.points is None else bundle.adapter.points.to_dict(),
        "pictures": len(records),
        "count": sum(record["count"] for record in records),
        "expected": round(sum(record["expected"] for record in records), DIGITS),
        "full": {record["image"]: record["full"] for record in records if record["full"]},
        "videos": films,
        "failed": run.failed,
        "warnings": notes,
        "timings_s": watch.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "outputs": {name: sha256(out / name) for name in ("counts.csv", "report.html")},
        "versions": versions(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with atomic_write(out / "run.json") as temporary:
        Path(temporary).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
