"""report.html over counted pictures: one self-contained page without scripts, which asks the network for nothing."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from pipelines.report import TEMPLATES
from pipelines.sinks.folder import atomic_write

SHOWN = 60  # pictures shown with their overlay and density map: a hundred of them are 10 MB
ROWS = 5000  # of the table; counts.csv has them all
THUMBNAIL = 420  # px of the longer side
WIDTH, HEIGHT = 720, 200  # px of the chart


def write_count_report(
    path: Path, out: Path, records: Sequence[dict[str, Any]], model: str, notes: Sequence[str]
) -> None:
    """Write the page; it appears under its name only when complete."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("count.html").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        records=records[:ROWS],
        left_out=max(len(records) - ROWS, 0),
        total=sum(record["count"] for record in records),
        expected=sum(record["expected"] for record in records),
        pictures=list(_pictures(out, records)),
        chart=chart(records),
        model=model,
        date=time.strftime("%Y-%m-%d"),
        notes=notes,
        classes=list(records[0]["classes"]),
    )
    with atomic_write(path) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")


def chart(records: Sequence[dict[str, Any]]) -> Markup:
    """Counts of the pictures in the order of their names, with their 90 % intervals, as SVG."""
    most = max([1.0, *(max(record["count"], record["interval_90"][1]) for record in records)])
    step = (WIDTH - 60) / max(len(records), 1)
    parts = []
    for number, record in enumerate(records):
        x = 50 + (number + 0.5) * step
        top, low, high = (
            HEIGHT - 24 - (HEIGHT - 40) * value / most for value in (record["count"], *record["interval_90"])
        )
        title = f"{escape(record['image'])}: {record['count']}, expected {record['expected']:g}"
        parts.append(
            f'<rect class="bar" x="{x - 0.38 * step:.1f}" y="{top:.1f}" width="{max(0.76 * step, 0.5):.1f}" '
            f'height="{HEIGHT - 24 - top:.1f}"><title>{title}</title></rect>'
        )
        if step > 4:
            parts.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{high:.1f}" y2="{low:.1f}"/>')
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Count of each picture, in the order of names">'
        f'<line class="axis" x1="48" y1="{HEIGHT - 24}" x2="{WIDTH - 8}" y2="{HEIGHT - 24}"/>'
        f'<text x="44" y="20" text-anchor="end">{most:.0f}</text>'
        f'<text x="44" y="{HEIGHT - 22}" text-anchor="end">0</text>{"".join(parts)}</svg>'
    )


def _pictures(out: Path, records: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in records[:SHOWN]:
        folder = out / record["folder"]
        found = [_thumbnail(folder / name) for name in ("overlay.jpg", "density.png")]
        if all(found):
            yield {"record": record, "overlay": found[0], "density": found[1]}


def _thumbnail(file: Path) -> Markup | None:
    """A data address; None where somebody removed the file."""
    try:
        with Image.open(file) as picture:
            small = picture.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
    except OSError:
        return None
    raw = io.BytesIO()
    small.save(raw, "JPEG", quality=80)
    return Markup(f"data:image/jpeg;base64,{base64.b64encode(raw.getvalue()).decode()}")
