"""MODEL_CARD.md of a bundle: what the model is for, what it learned from, how good it was, and where it is not.

Made of the bundle's description alone, so equal bundles have equal cards. Names of files are left out: those of studies
may be names of patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

CARD = "MODEL_CARD.md"
HEADLINES = ("miou", "iou", "pq", "sq", "rq", "ap", "ap50", "f1_50", "f1_75", "box_f1_50", "dice", "hd95", "nsd", "mae",
             "rmse")  # fmt: skip
LIMITS = {
    "scenes": (
        "Scores hold for imagery of the kind listed under Data: another sensor, season, resolution or region is "
        "outside what was measured.",
        "Objects larger than a tile are put together from pieces; see `ambiguous_links` in run.json for what masks "
        "could not decide.",
    ),
    "volumes": (
        "Research use only: this is no medical device, and no diagnosis may rest on it.",
        "Scores hold for scanners, protocols and patients like those listed under Data.",
    ),
    "photos": (
        "Scores hold for pictures of the kind listed under Data; what people do with found people is not its business.",
    ),
}


def model_card(description: Mapping[str, Any]) -> str:
    """The card, in Markdown."""
    adapter, provenance = description["adapter"], description.get("provenance") or {}
    kind = _kind(adapter)
    title = provenance.get("name") or adapter.get("name") or "model"
    blocks = [
        f"# Model card: {_line(title)}",
        _about(description, kind),
        "## Intended use\n\n" + _use(adapter, kind),
        "## Classes\n\n" + "\n".join(_classes(adapter)),
        "## Channels\n\n" + "\n".join(_channels(adapter)),
        "## Data\n\n" + "\n".join(_data(provenance)),
        "## Scores\n\n" + "\n".join(_scores(description.get("metrics") or {})),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(description, kind)),
    ]
    return "\n\n".join(blocks) + "\n"


def _kind(adapter: Mapping[str, Any]) -> str:
    if adapter.get("volume") is not None:
        return "volumes"
    return "photos" if adapter.get("photos") or adapter.get("points") is not None else "scenes"


def _about(description: Mapping[str, Any], kind: str) -> str:
    model, provenance = description["model"], description.get("provenance") or {}
    training = provenance.get("training") or {}
    rows = {
        "Architecture": f"{model.get('architecture')}, backbone {model.get('backbone')}",
        "Parameters": training.get("preset_parameters"),
        "Task": provenance.get("task"),
        "Input": {"volumes": "CT or MRI studies", "photos": "photos"}.get(kind, "georeferenced scenes, or pictures"),
        "Training": f"{training['steps']} steps of {training['batch']} crops of {training['crop']} px, "
        f"seed {training['seed']}, {training['seconds']} s"
        if {"steps", "batch", "crop", "seed", "seconds"} <= set(training)
        else None,
        "Code": provenance.get("git_revision"),
        "Weights": f"sha256 {description['weights']['sha256']}",
    }
    return "\n".join(f"- {name}: {value}" for name, value in rows.items() if value is not None)


def _use(adapter: Mapping[str, Any], kind: str) -> str:
    names = [str(one["name"]) for one in _listed(adapter)]
    what = {"volumes": "CT or MRI studies, for research", "photos": "photos"}.get(kind, "satellite and aerial scenes")
    task = "Counting" if adapter.get("points") is not None else "Finding and outlining"
    return f"{task} of {', '.join(names) or 'objects'} in {what}. Overlap rule: {adapter.get('overlap')}."


def _classes(adapter: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(("class", "kind"), ((one["name"], one.get("kind", "thing")) for one in _listed(adapter)))


def _listed(adapter: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    classes = adapter["classes"]
    return list(classes["classes"] if isinstance(classes, Mapping) else classes)


def _channels(adapter: Mapping[str, Any]) -> Iterator[str]:
    channels = adapter["channels"]
    listed = channels["channels"] if isinstance(channels, Mapping) else channels
    rows = ((one["name"], _find(one), one.get("offset", 0.0), one.get("scale", 1.0)) for one in listed)
    yield from _table(("channel", "found by", "offset", "scale"), rows)
    extra = {"resolution": "m a pixel", "spacing": "mm", "context_slices": "slices on each side"}
    for key, unit in extra.items():
        if adapter.get(key):
            yield f"\n{key.replace('_', ' ')}: {adapter[key]} {unit}"


def _find(channel: Mapping[str, Any]) -> str:
    return ", ".join(str(item) for item in channel.get("find") or ()) or "its name"


def _data(provenance: Mapping[str, Any]) -> Iterator[str]:
    rows = [*(provenance.get("places") or ()), *(provenance.get("cases") or ())]
    if not rows:
        yield "Not recorded: the weights were converted or built without a training run."
        return
    counted = Counter((str(row.get("role")), str(row.get("sha256", ""))[:12]) for row in rows)
    parts = ((role, digest, count) for (role, digest), count in sorted(counted.items()))
    yield from _table(("part", "file (sha256)", "places"), parts)


def _scores(metrics: Mapping[str, Any]) -> Iterator[str]:
    held: Mapping[str, Any] = metrics.get("heldout") or metrics
    baseline: Mapping[str, Any] = metrics.get("baseline") or {}
    columns = {"this model": held} | {
        "U-Net, same data and time" if name == "unet" else f"baseline {name}": scores
        for name, scores in baseline.items()
        if isinstance(scores, Mapping)
    }
    names = [name for name in HEADLINES if any(_is_number(column.get(name)) for column in columns.values())]
    if not names:
        yield "None: the model was not scored when it was saved."
        return
    yield "On the held-out part, whole and after stitching:\n"
    rows = ((name, *(_number(column.get(name)) for column in columns.values())) for name in names)
    yield from _table(("score", *columns), rows)
    per_class = held.get("per_class")
    if isinstance(per_class, Mapping) and per_class:
        shown = [n for n in HEADLINES if any(_is_number(row.get(n)) for row in per_class.values())]
        yield ""
        yield from _table(
            ("class", *shown), ((c, *(_number(row.get(n)) for n in shown)) for c, row in per_class.items())
        )


def _limits(description: Mapping[str, Any], kind: str) -> Iterator[str]:
    yield from LIMITS[kind]
    provenance = description.get("provenance") or {}
    tests = {str(row.get("sha256")) for key in ("places", "cases") for row in provenance.get(key) or ()
             if row.get("role") == "test"}  # fmt: skip
    if tests:
        yield f"Scored on {len(tests)} file{'s' * (len(tests) > 1)} and one seed: small differences may be chance."
    elif provenance.get("places") or provenance.get("cases"):
        yield "Nothing was held out: the scores are of data the model learned from."
    if any(isinstance(row, Mapping) and row.get("boxes") for row in provenance.get("labels") or ()):
        yield "Learned from boxes: outlines inside them are an assumption."


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(_line(cell) for cell in row)} |"


def _line(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str:
    return f"{value:.3f}" if _is_number(value) else "-"
