"""What a run shows on Prefect's page: how far it is, a small picture, its numbers, and where the rest is.

Keys are the run's kind and its subject, so that the page keeps one history a scene.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.runs import at_leisure

log = logging.getLogger(__name__)

SELDOM_S = 10.0
PREVIEW = 384  # pixels a side: 5 to 40 kB, which the server keeps in its database


class Bar:
    """Progress of a run; `to` may be called as often as there is news."""

    def __init__(self, kind: str, subject: str) -> None:
        self._id: UUID | None = None
        with at_leisure("progress"):
            self._id = cast(
                UUID, create_progress_artifact(0.0, key=key(kind, subject, "progress"), description=subject)
            )

        self._told = time.monotonic()

    def to(self, done: float, total: float) -> None:
        if self._id is not None:
            self._told = time.monotonic()
            with at_leisure("progress"):
                update_progress_artifact(self._id, 100.0 * done / max(1, total))

    def seldom(self, done: float, total: float) -> None:
        """`to`, where the last word is `SELDOM_S` old."""
        if time.monotonic() - self._told > SELDOM_S:
            self.to(done, total)


def key(*words: str) -> str:
    """Lower-case letters, digits and dashes: the only ones Prefect takes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")[:200]


def show_scene(folder: Path, stem: str) -> None:
    """Picture, table and link of a finished scene."""
    manifest = json.loads((folder / "run.json").read_text())
    with at_leisure("the preview"):
        address = f"data:image/png;base64,{base64.b64encode(preview(folder)).decode()}"
        create_image_artifact(address, key=key("scene", stem, "preview"), description=f"Classes of {stem}")
    show_table("scene", stem, scene_rows(folder, manifest))
    show_links("scene", stem, {"report": (folder / "report.html").absolute().as_uri()})
    model = manifest["model"]
    show_model(model["name"], model["version"], stem)


def show_table(kind: str, subject: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of numbers."""
    with at_leisure("a table"):
        create_table_artifact([dict(row) for row in rows], key=key(kind, subject, "numbers"), description=subject)


def show_links(kind: str, subject: str, links: Mapping[str, str]) -> None:
    """Links by what they lead to."""
    for text, link in links.items():
        with at_leisure("a link"):
            create_link_artifact(link, link_text=text, key=key(kind, subject, text))


def show_model(reference: str, version: str | None, subject: str) -> None:
    """A link to the model's page in MLflow, where models come from one and it has pages."""
    from pipelines.registry import REFERENCE

    named, server = REFERENCE.fullmatch(reference), mlflow_page()
    if named and server and version:
        show_links("scene", subject, {"model": f"{server}/#/models/{named['name']}/versions/{version}"})


def mlflow_page() -> str | None:
    """Address of MLflow's pages; None for a store without any. A password in it is nobody's business."""
    from pipelines.tracking import default_uri

    uri = default_uri()
    return re.sub(r"//[^/@]*@", "//", uri.rstrip("/")) if uri.startswith(("http://", "https://")) else None


def show_run(run_id: str, kind: str, subject: str) -> None:
    """A link to a run's page in MLflow, where it has pages."""
    page = mlflow_page()
    if page is None:
        return
    from mlflow.exceptions import MlflowException

    from pipelines.tracking_store import connect, default_uri

    try:
        experiment = connect(default_uri()).get_run(run_id).info.experiment_id
    except MlflowException as error:
        log.warning("no link to MLflow's run %s: %s", run_id, str(error).splitlines()[:1])
        return
    show_links(kind, subject, {"run": f"{page}/#/experiments/{experiment}/runs/{run_id}"})


def numbers(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores as rows, plain numbers only."""
    return [
        {"score": name, "value": round(value, 4)}
        for name, value in scores.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def scene_rows(folder: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Objects a class, then the run's own numbers."""
    import pyarrow.parquet

    named = pyarrow.parquet.read_table(folder / "objects.parquet", columns=["class"])["class"].value_counts()
    counts = sorted((one["values"], one["counts"]) for one in named.to_pylist())
    rows = [{"what": f"objects: {name}", "value": number} for name, number in counts]
    rows.append({"what": "objects", "value": manifest["objects"]})
    rows += [{"what": f"seconds: {stage}", "value": seconds} for stage, seconds in manifest["timings_s"].items()]
    rows.append({"what": "peak memory, MiB", "value": manifest["peak_rss_bytes"] >> 20})
    return [*rows, {"what": "pixels that could not be read", "value": manifest["lost_pixels"]}]


def preview(folder: Path) -> bytes:
    """The class map in its colours, small, as a PNG; read from the file's own overviews."""
    import numpy as np
    import rasterio
    from PIL import Image

    from pipelines.report_overview import label_overview

    path = folder / "semantic.tif"
    ids = label_overview(path, PREVIEW)
    with rasterio.open(path) as raster:
        colours = raster.colormap(1)
    table = np.zeros((256, 4), np.uint8)
    for value, colour in colours.items():
        table[value] = colour
    file = io.BytesIO()
    Image.fromarray(table[ids]).save(file, "PNG", optimize=True)
    return file.getvalue()
