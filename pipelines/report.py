"""report.html: one self-contained page about a predicted scene, which opens offline and asks the network for nothing.

The viewer is our own 300 lines of JavaScript (`templates/*.js`), not Bokeh: tried side by side on 20 000 outlines,
Bokeh embeds 1.3 MB of library and 190 bytes an object where this needs 18 kB and 82, and walking through the objects
under one click, keys, and a policy against scripts would all be our own code on top. The page carries a
Content-Security-Policy that forbids every request and every script but the viewer itself, whose hash it names; text
from outside is escaped by Jinja or as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from maskformer.masks import MaskSet
from pipelines.report_charts import curve_charts, score_chart
from pipelines.report_overview import BandStatistics, band_statistics, label_overview, overview
from pipelines.report_shapes import pack_shapes
from pipelines.report_tables import (
    ScoreRow,
    class_tables,
    glossary,
    result_sentence,
    run_sections,
    score_table,
    statistics_table,
    verdicts,
)

__all__ = [
    "BandStatistics",
    "ReportData",
    "ScoreRow",
    "band_statistics",
    "label_overview",
    "overview",
    "write_report",
]

# What may be embedded: 6 + 2.5 MB of pictures, to which base64 adds a third, and 5 + 2.5 MB of outlines as text.
# Together they stay under 19 MB, so the page stays under 20 whatever the scene is.
PICTURE_BYTES = 6_000_000
SEMANTIC_BYTES = 2_500_000
OBJECT_BYTES = 5_000_000
TRUTH_BYTES = 2_500_000
NODATA = 255
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows; plain values and arrays, so that it can be built without a model or a server.

    scene, model, date: texts for the head (`model` with its version).
    shape: (rows, columns) of the scene; all masks live on it.
    overview, scale: uint8 (h, w, 3) picture and the scene pixels one of its pixels spans (`overview()` gives both).
    objects: predicted MaskSet; areas: (N,) to show instead of pixels, in `area_unit`.
    truth: MaskSet of the labels; semantic: uint8 (h, w) class map, 0 nothing, index + 1, 255 no data
    (`label_overview()`). heldout: window of the part that was not trained on. transform: six numbers (a, b, c, d, e, f)
    from pixel to map, in `crs`.
    scores: the model first, then what it is compared with. curves: model name -> history rows.
    """

    scene: str
    model: str
    date: str
    shape: tuple[int, int]
    class_names: Sequence[str]
    class_colours: Sequence[str]
    overview: np.ndarray
    scale: float
    objects: MaskSet
    areas: np.ndarray | None = None
    area_unit: str = "px"
    truth: MaskSet | None = None
    semantic: np.ndarray | None = None
    heldout: tuple[slice, ...] | None = None
    transform: tuple[float, ...] | None = None
    crs: str | None = None
    scores: Sequence[ScoreRow] = ()
    scored_on: str = "the held-out part"
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    statistics: Sequence[BandStatistics] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.class_colours):
            raise ValueError(f"expected a colour per class, got {len(self.class_colours)} for {len(self.class_names)}")
        wrong = [c for c in self.class_colours if not re.fullmatch(r"#[0-9a-fA-F]{6}", c)]
        if wrong:
            raise ValueError(f"expected colours like #1b9e77, got {wrong[0]!r}")
        if self.overview.dtype != np.uint8 or self.overview.ndim != 3 or self.overview.shape[2] != 3:
            raise ValueError(f"expected a uint8 (h, w, 3) overview, got {self.overview.dtype} {self.overview.shape}")


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to `path`; it appears under that name only when complete."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(render(data), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def render(data: ReportData) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("shapes.js", "viewer.js"))
    objects = pack_shapes(data.objects, data.areas, OBJECT_BYTES)
    truth = None if data.truth is None else pack_shapes(data.truth, None, TRUTH_BYTES)
    semantic = None if data.semantic is None else _semantic_png(data.semantic, data.class_colours)
    charts, further = curve_charts(data.curves)
    counts = np.bincount(np.asarray(data.objects.labels), minlength=len(data.class_names))
    scene = {
        "shape": list(data.shape),
        "scale": data.scale,
        "names": list(data.class_names),
        "colours": list(data.class_colours),
        "unit": data.area_unit,
        "objects": objects.payload,
        "truth": None if truth is None else truth.payload,
        "heldout": None if data.heldout is None else [[s.start, s.stop] for s in data.heldout],
        "transform": None if data.transform is None else list(data.transform),
    }
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        data=data,
        # Both come from this package, not from outside, and must reach the page as they are (the hash depends on it).
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        scene_json=_json(scene),
        picture=_jpeg(data.overview),
        semantic=semantic,
        sentence=result_sentence(np.asarray(data.objects.labels), data.class_names),
        legend=[
            (i, n, c, int(counts[i])) for i, (n, c) in enumerate(zip(data.class_names, data.class_colours, strict=True))
        ],
        notes=[note for note in (objects.account("objects"), truth and truth.account("labelled objects")) if note],
        overall=score_table(data.scores) if data.scores else None,
        verdicts=verdicts(data.scores),
        per_class=class_tables(data.scores),
        glossary=glossary(data.scores),
        statistics=statistics_table(data.statistics) if data.statistics else None,
        score_chart=score_chart(np.asarray(data.objects.scores)) if len(data.objects) else None,
        charts=charts,
        curve_names=list(data.curves),
        further=further,
        sections=run_sections(data.run),
    )


def _json(value: Any) -> Markup:
    """JSON that may stand inside a script element: nothing in it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _jpeg(picture: np.ndarray) -> Markup:
    """The overview as a data address of at most PICTURE_BYTES: coarser JPEG first, then a smaller picture."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    for quality in (85, 70, 55, 40):
        raw = io.BytesIO()
        image.save(raw, "JPEG", quality=quality, optimize=True)
        if raw.tell() <= PICTURE_BYTES:
            return _data_address("image/jpeg", raw.getvalue())
    return _jpeg(np.asarray(image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BOX)))


def _semantic_png(semantic: np.ndarray, colours: Sequence[str]) -> Markup:
    """The class map as a PNG with a palette, clear where there is nothing or no data."""
    palette = np.zeros((256, 3), np.uint8)
    opacity = np.zeros(256, np.uint8)
    for value, colour in enumerate(colours[: NODATA - 1], start=1):
        palette[value] = tuple(bytes.fromhex(colour[1:]))
        opacity[value] = 255
    step = 1
    while True:
        image = Image.fromarray(np.ascontiguousarray(semantic[::step, ::step], np.uint8), "P")
        image.putpalette(palette.tobytes())
        raw = io.BytesIO()
        image.save(raw, "PNG", transparency=opacity.tobytes(), optimize=True)
        if raw.tell() <= SEMANTIC_BYTES:
            return _data_address("image/png", raw.getvalue())
        step *= 2


def _data_address(kind: str, raw: bytes) -> Markup:
    return Markup(f"data:{kind};base64,{base64.b64encode(raw).decode()}")
