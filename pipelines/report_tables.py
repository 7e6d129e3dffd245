"""What the report says in tables and sentences: scores side by side, bands against training data, facts of the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.report_overview import BandStatistics


@dataclass(frozen=True)
class ScoreRow:
    """One line of the comparison: a model or a trivial baseline, scored by the same code on the same part of the scene.

    metrics: metric key -> value; per_class: class name -> metric key -> value; facts: `steps`, `minutes`,
    `learning_rate`, ….
    """

    name: str
    metrics: Mapping[str, float | None]
    per_class: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One table cell; `best` in its comparison, `flag` where it needs attention, `words` where it is set like text."""

    text: str
    best: bool = False
    flag: bool = False
    words: bool = False


@dataclass(frozen=True)
class Table:
    """A table with one head row; the first column holds row headers."""

    caption: str
    head: list[str]
    rows: list[tuple[str, list[Cell]]]


# key -> (name in a table head, one line for a reader who has never met it)
METRICS: dict[str, tuple[str, str]] = {
    "iou": (
        "IoU",
        "intersection over union: of all pixels that the prediction or the truth marks, the share both mark. "
        "1 is perfect, 0 is no overlap.",
    ),
    "miou": ("mean IoU", "the IoU of each class, averaged over the classes."),
    "foreground_iou": ("foreground IoU", "the IoU of everything that is an object of any class."),
    "pixel_accuracy": ("pixel accuracy", "the share of pixels that got the right class."),
    "pq": ("PQ", "panoptic quality: segmentation quality times recognition quality; finds and outlines in one number."),
    "sq": ("SQ", "segmentation quality: the mean IoU of those objects that were found."),
    "rq": ("RQ", "recognition quality: how completely and how cleanly objects were found, whatever their outline."),
    "ap": ("AP", "average precision of object masks, averaged over overlap demands from 0.5 to 0.95."),
    "ap50": ("AP50", "average precision where an overlap (IoU) of 0.5 counts as found."),
    "f1_50": ("object F1", "balance of objects missed and objects invented; an IoU of at least 0.5 counts as found."),
    "boundary_iou": ("boundary IoU", "the same within 3 pixels of the outlines: how exact they are."),
    "count_mae": ("count error", "objects found too many or too few, mean over scenes. Smaller is better."),
    "f1_75": ("object F1, strict", "the same where only an IoU of at least 0.75 counts as found."),
    "box_f1": ("box F1", "balance of missed and invented objects, compared by their bounding boxes."),
    "box_f1_50": ("box F1", "balance of missed and invented objects, compared by their bounding boxes (IoU ≥ 0.5)."),
    "box_ap": ("box AP", "average precision by bounding boxes, over overlap demands from 0.5 to 0.95."),
    "box_ap50": ("box AP50", "average precision by bounding boxes where an overlap (IoU) of 0.5 counts as found."),
    "dice": ("Dice", "twice the common area over the sum of both areas. 1 is perfect."),
    "nsd": ("NSD", "share of the outline that lies within tolerance of the true outline."),
    "hd95": ("HD95", "distance that 95 % of the outline stays within. Smaller is better."),
    "mae": ("count error", "mean absolute error of the number of objects. Smaller is better."),
    "rmse": ("count RMSE", "root mean squared error of the number of objects. Smaller is better."),
}
SMALLER_IS_BETTER = {"hd95", "mae", "count_mae", "rmse", "loss"}
LEADING_FACTS = ("steps", "minutes", "learning_rate")
VERDICT_METRICS = ("foreground_iou", "iou", "miou", "f1_50", "box_f1", "box_f1_50", "pq")


def metric_name(key: str) -> str:
    return METRICS[key][0] if key in METRICS else key.replace("_", " ")


def score_table(scores: Sequence[ScoreRow]) -> Table:
    """All models by all overall metrics, the best of each column marked, training facts in the last columns."""
    keys = _union(row.metrics for row in scores)
    facts = [k for k in LEADING_FACTS if any(k in row.facts for row in scores)]
    facts += [k for k in _union(row.facts for row in scores) if k not in LEADING_FACTS]
    columns = [_marked([row.metrics.get(key) for row in scores], key) for key in keys]
    columns += [[Cell(fact_text(key, row.facts.get(key))) for row in scores] for key in facts]
    rows = [(row.name, [column[i] for column in columns]) for i, row in enumerate(scores)]
    head = ["Model", *map(metric_name, keys), *(key.replace("_", " ") for key in facts)]
    return Table("Scores over all classes, the best value of each column in bold", head, rows)


def class_tables(scores: Sequence[ScoreRow]) -> list[Table]:
    """One table a metric: classes down, models across, the best of each row marked; none where one class is all."""
    models = [row for row in scores if row.per_class]
    classes = _union(row.per_class for row in models)
    if len(classes) < 2:
        return []
    keys = _union(values for row in models for values in row.per_class.values())
    tables = []
    for key in keys:
        rows = [(name, _marked([row.per_class.get(name, {}).get(key) for row in models], key)) for name in classes]
        head = ["Class", *(row.name for row in models)]
        tables.append(Table(f"{metric_name(key)} by class, the best value of each row in bold", head, rows))
    return tables


def verdicts(scores: Sequence[ScoreRow]) -> list[str]:
    """Who is ahead, said plainly, for the main metrics; the first row is the model this report is about."""
    sentences = []
    own = scores[0] if scores else None
    for key in VERDICT_METRICS:
        if own is None or len(scores) < 2 or _value(own.metrics.get(key)) is None:
            continue
        sign = -1 if key in SMALLER_IS_BETTER else 1
        known = [(row, v) for row in scores if (v := _value(row.metrics.get(key))) is not None]
        ranked = sorted(known, key=lambda pair: -sign * pair[1])
        best, first = ranked[0]
        mine = next(v for row, v in known if row is own)
        if len(ranked) < 2:
            continue
        if number_text(first) == number_text(mine):
            rival, second = next((row, v) for row, v in ranked if row is not own)
            ahead = "is level with" if number_text(second) == number_text(mine) else "is ahead of"
            text = f"{own.name} {ahead} {rival.name} ({number_text(mine)} and {number_text(second)})"
        else:
            place = [row is own for row, _ in ranked].index(True) + 1
            text = f"{best.name} is ahead with {number_text(first)}; {own.name} has {number_text(mine)}"
            text += f" and is number {place} of {len(ranked)}" if len(ranked) > 2 else ""
        sentences.append(f"{metric_name(key)}: {text}.")
    return sentences


def glossary(scores: Sequence[ScoreRow]) -> list[tuple[str, str]]:
    """Every metric that is used, with its one-line explanation."""
    keys = _union([*(row.metrics for row in scores), *(v for row in scores for v in row.per_class.values())])
    return list(dict.fromkeys(METRICS[key] for key in keys if key in METRICS))


def statistics_table(bands: Sequence[BandStatistics]) -> Table:
    """One row a band: this scene, the training data where known, and a remark where the two are far apart."""
    trained = any(band.trained_mean is not None for band in bands)
    head = ["Band", "mean", "std", "min", "max", "no data"]
    head += ["training mean", "training std", "remark"] if trained else []
    rows = []
    for band in bands:
        texts = [number_text(v, 4) for v in (band.mean, band.std, band.minimum, band.maximum)]
        texts.append("none" if band.nodata_share == 0 else f"{band.nodata_share:.1%}")
        cells = [Cell(text) for text in texts]
        if trained:
            cells += [Cell(number_text(v, 4)) for v in (band.trained_mean, band.trained_std)]
            remark = band_remark(band)
            cells.append(Cell(remark or "similar", flag=bool(remark), words=True))
        rows.append((band.name, cells))
    return Table(
        "Pixel values of this scene, per band (std: standard deviation, the usual distance from the mean)", head, rows
    )


def band_remark(band: BandStatistics) -> str:
    """Where a band is far from what the model learned on: over 1 training std off, or half or twice as spread."""
    if band.trained_mean is None or not band.trained_std or not math.isfinite(band.mean):
        return "" if math.isfinite(band.mean) else "no valid pixel"
    remarks = []
    shift = (band.mean - band.trained_mean) / band.trained_std
    if abs(shift) > 1:
        remarks.append(f"{abs(shift):.1f} training std {'brighter' if shift > 0 else 'darker'}")
    ratio = band.std / band.trained_std
    if not 0.5 <= ratio <= 2:
        remarks.append(f"{ratio:.2g} times the spread of the training data")
    return "far off: " + ", ".join(remarks) if remarks else ""


def result_sentence(labels: np.ndarray, names: Sequence[str]) -> str:
    """`1 204 objects: 1 150 × tree crown, 54 × shadow.`"""
    if len(labels) == 0:
        return "No objects were found."
    counts = np.bincount(labels, minlength=len(names))
    parts = [f"{grouped(counts[i])} × {names[i]}" for i in np.argsort(-counts, kind="stable") if counts[i]]
    more = f" and {len(parts) - 8} more classes" if len(parts) > 8 else ""
    return f"{grouped(len(labels))} object{'s' * (len(labels) != 1)}: {', '.join(parts[:8])}{more}."


def run_sections(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A nested record as sections of (what, value) lines: plain values first, then one section a nested mapping."""
    plain = [(key, value) for key, value in run.items() if not isinstance(value, Mapping)]
    sections = [("run", [line for key, value in plain for line in _lines(key, value)])] if plain else []
    sections += [
        (str(key).replace("_", " "), [line for k, v in value.items() for line in _lines(k, v, str(key))])
        for key, value in run.items()
        if isinstance(value, Mapping) and value
    ]
    return sections


def fact_text(key: str, value: Any) -> str:
    """A value as a person reads it: bytes in GB, seconds with their unit, grouped digits, short floats."""
    if value is None:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, float, np.integer, np.floating)):
        if key.endswith("_bytes"):
            return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
        if key.endswith(("_s", "seconds")):
            return f"{value:.2f} s" if value < 120 else f"{value / 60:.1f} min"
        if key == "learning_rate":
            return f"{value:g}"
        number = float(value)
        return grouped(number) if number.is_integer() else number_text(number, 4)
    return str(value)


def grouped(value: float) -> str:
    """Digits in threes, with a narrow space that does not break a line."""
    return f"{int(value):,}".replace(",", "\u202f")


def number_text(value: float | None, digits: int = 3) -> str:
    """Shares of 0..1 with three decimals, other numbers with `digits` significant ones, `–` where there is none."""
    number = _value(value)
    if number is None:
        return "–"
    if digits == 3 and abs(number) <= 1:
        return f"{number:.3f}"
    return grouped(number) if abs(number) >= 10 ** (digits + 1) else f"{number:.{digits}g}"


def _marked(values: Sequence[float | None], key: str) -> list[Cell]:
    """Cells of one comparison. What looks equal counts as equal, so that ties are bold on both sides."""
    texts = [number_text(value) for value in values]
    known = [v for value in values if (v := _value(value)) is not None]
    if len(known) < 2:
        return [Cell(text) for text in texts]
    best = number_text(min(known) if key in SMALLER_IS_BETTER else max(known))
    return [Cell(text, best=text == best) for text in texts]


def _lines(key: str, value: Any, above: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [(f"{key}: {k}", text) for inner, v in value.items() for k, text in _lines(inner, v, str(key))]
    if isinstance(value, (list, tuple)):
        return [(str(key), ", ".join(fact_text(str(key), v) for v in value) or "none")]
    unit = f"{key}_s" if above.endswith("_s") else str(key)  # the stages under `timings_s` are seconds
    return [(str(key).replace("_", " "), fact_text(unit, value))]


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _value(value: Any) -> float | None:
    """The number, or None where there is none: missing, not finite, or not a number at all."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    return float(value) if math.isfinite(value) else None
