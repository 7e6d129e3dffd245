"""Line charts and histograms as plain SVG: sharp in print, readable without scripts, coloured by the style sheet.

Series are told apart by colour (classes `s0`, `s1`, … of the style sheet) and by dashes, so a grey print still works.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 34
# A line of 360 px cannot show more points than this; longer histories are averaged into as many equal steps.
MAX_POINTS = 240
MAX_CHARTS = 12
SERIES_STYLES = 4


@dataclass(frozen=True)
class Chart:
    """A drawn chart with the words that stand beside it."""

    title: str
    summary: str
    svg: Markup


def curve_charts(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[list[Chart], list[str]]:
    """One chart per recorded value, a line per model, against minutes (against steps where no seconds were kept).

    `curves`: model name -> history rows with `step`, `seconds` and any numbers. Returns the charts (total loss first,
    parts of auxiliary layers, named "loss.3", not at all) and the names of values beyond the first MAX_CHARTS.
    """
    rows = [row for history in curves.values() for row in history]
    timed = bool(rows) and all(_number(row.get("seconds")) is not None for row in rows)
    keys: dict[str, None] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "seconds") and "." not in key and _number(value) is not None:
                keys.setdefault(key)
    ordered = sorted(keys, key=lambda key: (key not in ("total", "loss"), "loss" not in key and key != "total"))
    charts = []
    for key in ordered[:MAX_CHARTS]:
        series = {}
        for name, history in curves.items():
            points = [
                (x, y)
                for row in history
                if (x := _x(row, timed)) is not None and (y := _number(row.get(key))) is not None
            ]
            if len(points) > 1:
                series[name] = points
        if series:
            charts.append(_line_chart(plain_name(key), series, "minutes" if timed else "steps", list(curves)))
    return charts, [plain_name(key) for key in ordered[MAX_CHARTS:]]


def score_chart(scores: np.ndarray) -> Chart:
    """How many objects have which score: 20 bars over 0..1."""
    counts, _ = np.histogram(np.clip(scores, 0.0, 1.0), bins=20, range=(0.0, 1.0))
    top = max(1, int(counts.max()))
    ticks = [t for t in nice_ticks(0, top) if t == int(t)]
    frame = _Frame(0.0, 1.0, 0.0, max(float(top), ticks[-1]))
    width = (WIDTH - LEFT - RIGHT) / 20
    bars = "".join(
        f'<rect class="bar" x="{LEFT + i * width + 0.5:.1f}" y="{frame.y(n):.1f}" width="{width - 1:.1f}" '
        f'height="{frame.y(0) - frame.y(n):.1f}"><title>{i / 20:.2f} to {(i + 1) / 20:.2f}: {n} objects</title></rect>'
        for i, n in enumerate(counts.tolist())
        if n
    )
    axes = _axes(frame, [0, 0.25, 0.5, 0.75, 1], ticks, "score")
    middle = float(np.median(scores)) if len(scores) else math.nan
    summary = f"{len(scores)} objects; half of them score above {middle:.2f}." if len(scores) else "No objects."
    return Chart("Scores of the objects", summary, _svg(f"Histogram of scores. {summary}", axes + bars))


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover low..high."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def plain_name(key: str) -> str:
    """`val_iou` as a person reads it: "validation iou"; the sum of all loss terms by its plain name."""
    if key == "total":
        return "total loss"
    return re.sub(r"^val[ _/]", "validation ", key).replace("_", " ").replace("/", " ")


def _line_chart(title: str, series: Mapping[str, list[tuple[float, float]]], unit: str, names: list[str]) -> Chart:
    drawn = {name: _thin(points) for name, points in series.items()}
    values = [y for points in drawn.values() for _, y in points]
    x_end = max(x for points in drawn.values() for x, _ in points)
    y_ticks, x_ticks = nice_ticks(min(values), max(values)), nice_ticks(0, x_end)
    x_ticks = [t for t in x_ticks if t <= x_end * 1.001]
    frame = _Frame(0.0, x_end, y_ticks[0], y_ticks[-1])
    lines, words = "", []
    for name, points in drawn.items():
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        style = names.index(name) % SERIES_STYLES
        lines += f'<polyline class="line s{style}" points="{path}"><title>{escape(name)}</title></polyline>'
        whole = [y for _, y in series[name]]
        words.append(f"{name}: from {_short(whole[0])} to {_short(whole[-1])}")
    summary = "; ".join(words) + "."
    return Chart(title, summary, _svg(f"{title} over {unit}. {summary}", _axes(frame, x_ticks, y_ticks, unit) + lines))


@dataclass(frozen=True)
class _Frame:
    """From data to the drawing's coordinates."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / ((self.x_high - self.x_low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / ((self.y_high - self.y_low) or 1.0) * (HEIGHT - TOP - BOTTOM)


def _axes(frame: _Frame, x_ticks: Iterable[float], y_ticks: Iterable[float], x_label: str) -> str:
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text x="{frame.x(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{_short(tick)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="unit" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _svg(label: str, body: str) -> Markup:
    # `label` is escaped here; `body` was built from numbers and escaped names only.
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>')


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= MAX_POINTS:
        return points
    return [
        (float(part[:, 0].mean()), float(part[:, 1].mean())) for part in np.array_split(np.array(points), MAX_POINTS)
    ]


def _x(row: Mapping[str, Any], timed: bool) -> float | None:
    value = _number(row.get("seconds" if timed else "step"))
    return value / 60 if timed and value is not None else value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    return float(value) if math.isfinite(value) else None


def _short(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1000 else f"{value:.3g}"
