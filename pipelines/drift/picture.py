"""Drift in one picture (SVG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.drift.features import Drift


def draw(found: Drift, path: Path, title: str) -> None:
    """One picture (SVG): bands, features by depth, confidence."""
    panels = [
        ("shift of each band, trained deviations", [abs(a) for a, _ in found.bands.values()]),
        (f"features, shallow to deep: distance {found.distance:.2f}", list(found.layers.values())),
        (f"surest class's probability: {found.mean_confidence:.2f}", list(found.confidence)),
    ]
    parts = [_panel(20 + 300 * place, words, values) for place, (words, values) in enumerate(panels)]
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="920" height="240" font-family="sans-serif" font-size="12">'
    path.write_text(
        f'{head}<rect width="100%" height="100%" fill="white"/><text x="20" y="20">{_escaped(title)}</text>'
        + "".join(parts)
        + "</svg>\n"
    )


def _panel(left: int, words: str, values: Sequence[float]) -> str:
    most, width = max([*values, 1e-9]), 280 / max(len(values), 1)
    bars = [
        f'<rect x="{left + i * width:.1f}" y="{200 - 140 * value / most:.1f}" width="{0.9 * width:.1f}" '
        f'height="{140 * value / most:.1f}" fill="#0072b2"/>'
        for i, value in enumerate(values)
    ]
    return "".join(bars) + f'<text x="{left}" y="222">{_escaped(words)} (highest bar {most:.2f})</text>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
