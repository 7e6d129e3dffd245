"""Objects and classes of many photos, in the files of the picture sets: COCO panoptic and instance results, overlays.

A picture's folder holds overlay.jpg, semantic.png (class ids as in the other outputs, with a palette), objects.json
(its objects as COCO results) and, where no two objects share a pixel, panoptic.png (colour = number). Over all pictures
there are panoptic.json beside `panoptic/`, instances.json and run.json; they can be made of the folders at any time.
"""

from __future__ import annotations

import json
import shutil
import time
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapters.classes import ClassSet
from pipelines.bundle import Bundle, load_bundle
from pipelines.config import PredictOptions
from pipelines.manifest import Stopwatch, peak_rss_bytes
from pipelines.picture_runs import PictureJob, PictureRun, Progress, key_of, pictures_of, run_pictures
from pipelines.provenance import versions
from pipelines.sinks.folder import OutputFolder, atomic_write, sha256
from pipelines.sinks.pictures import categories

PANOPTIC = "panoptic"  # COCO's layout: panoptic.json beside the folder panoptic/


def predict_pictures(
    model: str | Path,
    place: str | Path,
    out: str | Path,
    options: PredictOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> PictureRun:
    """Predict the picture `place`, or every picture of that folder, that `out` has no record of.

    A picture that cannot be read is named in the result and in run.json, and the others go on. InputError where none
    could be, and where `out` holds results of another model or other options (`overwrite` makes all again).
    """
    from pipelines.predictor import settle

    bundle = load_bundle(model)
    pictures = pictures_of(place)
    task = bundle.provenance.get("task")
    settled = settle(options or PredictOptions(), bundle.adapter, bundle.thresholds, task)
    job = PredictJob(bundle, str(model), settled)
    return run_pictures(job, pictures, out, overwrite=overwrite, on_progress=on_progress)


class PredictJob(PictureJob):
    """Prediction as a job over pictures; the model is built when the first of them is worked on."""

    record = "picture.json"

    def __init__(self, bundle: Bundle, model: str, options: PredictOptions) -> None:
        self.bundle, self.model, self.options = bundle, model, options
        self.adapter = bundle.adapter
        self.key = key_of(bundle, options)

    @cached_property
    def predictor(self) -> Any:
        from pipelines.predictor import Predictor

        return Predictor(self.bundle.build(), self.adapter, self.options)

    def one(self, source: Any, folder: Path) -> dict[str, Any]:
        from pipelines.annotations.base import unite_stuff
        from pipelines.assembly import predict_in_memory
        from pipelines.sinks.pictures import write_picture

        scene, ids = predict_in_memory(source, self.predictor, self.bundle.thresholds)
        objects = unite_stuff(scene.objects, self.adapter.classes)  # as in the sets: stuff is one segment a class
        write_picture(folder, source, objects, ids, self.adapter)
        labels = objects.labels.tolist()
        counts = {name: labels.count(i) for i, name in enumerate(self.adapter.classes.names)}
        return {
            "objects": len(labels),
            "classes": {name: count for name, count in counts.items() if count},
            "ambiguous_links": scene.ambiguous_links,
        }

    def summarise(self, run: PictureRun, watch: Stopwatch) -> None:
        with watch.stage("collect"):
            outputs = _collect(run, self.adapter.classes)
        manifest = {
            "version": version("maskbridge"),
            "model": {"name": self.model, "version": self.bundle.version, "sha256": self.bundle.sha256},
            "parameters": self.options.model_dump(mode="json"),
            "pictures": len(run.records),
            "objects": sum(record["objects"] for record in run.records),
            "failed": run.failed,
            "timings_s": watch.seconds,
            "peak_rss_bytes": peak_rss_bytes(),
            "outputs": {name: sha256(run.out / name) for name in outputs},
            "versions": versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with atomic_write(run.out / "run.json") as temporary:
            Path(temporary).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _collect(run: PictureRun, classes: ClassSet) -> list[str]:
    """instances.json, panoptic.json and panoptic/ of the pictures' folders; names of the files written."""
    instances, images, annotations, drawn = [], [], [], []
    for record in run.records:
        folder = run.out / record["folder"]
        objects = json.loads((folder / "objects.json").read_text(encoding="utf-8"))
        number = _image_id(record["image"])
        height, width = record["shape"]
        images.append({"id": number, "file_name": record["image"], "height": height, "width": width})
        instances += [{"image_id": number, **{k: v for k, v in one.items() if k != "id"}} for one in objects]
        if (folder / "panoptic.png").exists():
            name = f"{record['folder']}.png"
            drawn.append((folder / "panoptic.png", name))
            keys = ("id", "category_id", "area", "bbox", "score")
            segments = [{**{key: one[key] for key in keys}, "iscrowd": 0} for one in objects]
            annotations.append({"image_id": number, "file_name": name, "segments_info": segments})
    listed = {"images": images, "categories": categories(classes)}
    written = [_write(run.out / "instances.json", instances)]
    if drawn:
        with OutputFolder(run.out, PANOPTIC, overwrite=True) as folder_of_all:
            for file, name in drawn:
                shutil.copyfile(file, folder_of_all.path / name)
            folder_of_all.commit()
        written.append(_write(run.out / f"{PANOPTIC}.json", {**listed, "annotations": annotations}))
    return written


def _image_id(name: str) -> int | str:
    """COCO's pictures are named by their number."""
    stem = Path(name).stem
    return int(stem) if stem.isdigit() else stem


def _write(path: Path, content: Any) -> str:
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path.name
