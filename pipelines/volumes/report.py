"""report.html of a study: a slice viewer in three planes with what was found laid over it, in one file.

The page asks the network for nothing: its policy forbids every request and every script but its own, whose hash it
names. It holds no name of a patient or a file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from maskformer.masks import MaskSet
from pipelines.manifest import peak_rss_bytes
from pipelines.provenance import versions
from pipelines.report import TEMPLATES
from pipelines.report_tables import result_sentence, run_sections
from pipelines.sinks.folder import atomic_write
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.report_pictures import Atlas, class_layer, object_layers, page_grid, pictures
from pipelines.volumes.resampling import Resampling
from pipelines.volumes.sinks import NOTICE
from pipelines.volumes.sinks.table import centroids

if TYPE_CHECKING:
    from pipelines.volumes.prediction import VolumePredictor, VolumeResult
    from pipelines.volumes.study_files import Study

MOST_OBJECTS = 2000  # in the page, largest first; objects.csv has them all
ROWS = 200  # of the table


def write_study_report(
    path: Path, study: Study, predictor: VolumePredictor, result: VolumeResult, diameters: NDArray[np.float64]
) -> None:
    """Write the page; it appears under its name only when complete. diameters: (N,) mm, the largest of each object."""
    page = render(study, predictor, result, diameters)
    with atomic_write(path) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")


def render(study: Study, predictor: VolumePredictor, result: VolumeResult, diameters: NDArray[np.float64]) -> str:
    """The page as text."""
    source, model, classes = study.source, predictor.model, predictor.model.adapter.classes
    geometry = source.geometry
    grid = page_grid(geometry)
    rows = _rows(result.objects, grid, geometry.voxel_volume_mm3, classes.names)
    shown = result.objects[np.array([row["index"] for row in rows], np.int64)]
    scene: dict[str, Any] = {
        "shape": [int(n) for n in reversed(grid.target.shape)],
        "spacing": [float(s) for s in reversed(grid.target.spacing)],
        "affine": [[float(v) for v in line] for line in grid.target.affine[:3]],
        "names": list(classes.names),
        "colours": list(classes.colours),
        "objects": [{k: row[k] for k in ("number", "label", "score", "volume", "centre")} for row in rows],
        "members": [],
        "atlas": vars(Atlas.of(tuple(reversed(grid.target.shape)))),
    }
    layers = []
    for address, members in object_layers(shown, grid):
        layers.append(address)
        scene["members"].append(members.tolist())
    seen = pictures(source, model.adapter, grid)
    scene["pictures"] = [{"name": one.name, "low": one.low, "high": one.high} for one in seen]
    volumes = class_volumes(result.labels, geometry.voxel_volume_mm3, len(classes))
    counts = np.bincount(result.objects.labels, minlength=len(classes))
    script = (TEMPLATES / "study.js").read_text(encoding="utf-8")
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "study.css"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("study.html").render(
        style=Markup(style),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        scene_json=_json(scene),
        pictures=[one.address for one in seen],
        layers=layers,
        class_layer=class_layer(result.labels, grid),
        name=study.stem,
        notice=NOTICE,
        sentence=result_sentence(np.asarray(result.objects.labels), classes.names),
        model=model.name if model.version is None else f"{model.name}, version {model.version}",
        date=time.strftime("%Y-%m-%d"),
        kind=_kind(study),
        grid=_size(geometry),
        page=_size(grid.target),
        undrawn=len(rows) - sum(len(members) for members in scene["members"]),
        same_grid=grid.is_exact,
        notes=study.notes,
        classes=[
            (k, name, classes.colours[k], int(counts[k]), volume_text(volumes[k]))
            for k, name in enumerate(classes.names)
            if counts[k] or volumes[k]
        ],
        absent=[name for k, name in enumerate(classes.names) if not counts[k] and not volumes[k]],
        rows=[
            row | {"volume_text": volume_text(row["volume"]), "diameter": f"{diameters[row['index']]:.3g} mm"}
            for row in rows[:ROWS]
        ],
        left_out=len(result.objects) - len(rows),
        objects=len(result.objects),
        sections=run_sections(_facts(study, predictor)),
    )


def volume_text(mm3: float) -> str:
    """A volume as a person reads it: mm³ below a millilitre, then ml, then litres."""
    if mm3 < 1000:
        return f"{mm3:.3g} mm³" if mm3 < 100 else f"{mm3:.0f} mm³"
    return f"{mm3 / 1000:.3g} ml" if mm3 < 1e6 else f"{mm3 / 1e6:.3g} l"


def class_volumes(labels: NDArray, voxel_mm3: float, classes: int) -> NDArray[np.float64]:
    """(K,) mm³ of every class of a class map."""
    counts = np.zeros(classes + 1, np.int64)
    slowest = int(np.argmax(np.abs(labels.strides)))
    for plane in np.moveaxis(labels, slowest, 0):  # a whole volume would be counted through a copy in 64 bits
        counts += np.bincount(plane.ravel(), minlength=classes + 1)[: classes + 1]
    return counts[1:].astype(np.float64) * voxel_mm3


def _rows(objects: MaskSet, grid: Resampling, voxel_mm3: float, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of the page, largest first; `centre` is (slice, row, column) on the page's grid."""
    order = np.argsort(-objects.areas, kind="stable")[:MOST_OBJECTS]
    places = grid.target.index(grid.source.world(_middles(objects, order)))
    return [
        {
            "index": int(n),
            "number": int(n) + 1,
            "label": int(objects.labels[n]),
            "name": names[int(objects.labels[n])],
            "score": round(float(objects.scores[n]), 3),
            "volume": round(float(objects.areas[n]) * voxel_mm3, 3),
            "centre": [round(float(v), 2) for v in reversed(place)],
        }
        for n, place in zip(order, places)
    ]


def _middles(objects: MaskSet, order: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 3) the voxel of each object nearest to its centroid, which may itself lie outside, as in a ring."""
    result = np.zeros((len(order), 3))
    for row, (number, centre) in enumerate(zip(order, centroids(objects)[order])):
        runs = objects.runs[objects.offsets[number] : objects.offsets[number + 1]]
        column = np.clip(centre[2], runs[:, 2], runs[:, 3] - 1)
        voxels = np.column_stack([runs[:, :2], column])
        result[row] = voxels[np.square(voxels - centre).sum(axis=1).argmin()]
    return result


def _size(geometry: VolumeGeometry) -> str:
    shape, spacing = geometry.shape, geometry.spacing
    return f"{' × '.join(map(str, shape))} voxels of {' × '.join(f'{s:.3g}' for s in spacing)} mm"


def _kind(study: Study) -> str:
    what = {"nifti": "NIfTI", "dicom": "DICOM"}[study.source.kind]
    return f"{what}, {study.source.modality}" if study.source.modality else what


def _facts(study: Study, predictor: VolumePredictor) -> dict[str, Any]:
    return {
        "peak_rss_bytes": peak_rss_bytes(),
        "parameters": predictor.options.model_dump(mode="json"),
        "timings_s": study.watch.seconds,
        "hashes": {"source": study.digest, "weights": predictor.model.sha256},
        "versions": versions(),
    }


def _json(value: Any) -> Markup:
    """JSON that may stand inside a script element: nothing in it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
