"""What is this file or model, and what would fail: for `maskbridge inspect`.

Findings are a JSON-ready dict: `kind`, `path`, then what there is to say; `problems` and `notes` are lines for a
reader. Only headers are read, and of labels the table; no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adapters.errors import InputError
from pipelines.volumes.inspection import NIFTI, describe_cases, describe_volume, is_volume

Findings = dict[str, Any]
LABEL_FILES = (".geojson", ".gpkg", ".shp", ".parquet", ".geoparquet", ".fgb", ".csv", ".xml", ".json")
HEAD = 16  # bytes looked at to name a file nothing here can read

# First bytes of files that people hand over by mistake.
MAGIC = (
    (b"PK\x03\x04", "a zip archive (unpack it first)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF"),
    (b"\x89HDF", "an HDF5 or NetCDF-4 file"),
    (b"CDF", "a NetCDF file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"<?xml", "an XML file"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)


def inspect_thing(thing: str, model: str | None = None) -> Findings:
    """Say what `thing` is: scene, labels, run config, bundle folder or `models:/…`.

    model: also say whether this model (bundle or registry) could run on the scene. Raises InputError where it is
    not there or is nothing that is known here, saying what it looks like instead.
    """
    if thing.startswith("models:/"):
        return _bundle(thing)
    path = Path(thing)
    if path.is_dir():
        return _folder(path, model)
    base = Path(thing.split("#", 1)[0])  # `scene.npz#key` names an array in a file
    if not base.exists() and "://" not in thing and not thing.startswith("/vsi"):
        raise InputError(f"{thing}: no such file or folder")
    if base.suffix.lower() in (".yaml", ".yml"):
        return _config(path)
    if path.name.lower().endswith(NIFTI) or _begins_as_dicom(base):
        return describe_volume(path, model)
    if base.suffix.lower() == ".json" and (adapter := _adapter_file(path)) is not None:
        return adapter
    return _data(thing, base, model)


def render(findings: Mapping[str, Any]) -> str:
    """Readable text: one line a fact, problems at the end."""
    lines = [f"{findings['path']}: {findings['kind']}"]
    lines += _lines(_shown(findings), 1)
    lines += [f"  note     {note}" for note in findings.get("notes", ())]
    lines += [f"  problem  {problem}" for problem in findings.get("problems", ())]
    return "\n".join(lines)


def _data(thing: str, base: Path, model: str | None) -> Findings:
    """A scene or labels: labels first where the name says so, else whichever reader takes it."""
    from pipelines.annotations import describe_labels
    from pipelines.sources import describe

    readers: list[tuple[str, Callable[[str], Mapping[str, Any]]]] = [
        ("scene", describe),
        ("labels", describe_labels),
    ]
    if base.suffix.lower() in LABEL_FILES:
        readers.reverse()
    faults = []
    for kind, reader in readers:
        try:
            facts = reader(thing)
        except InputError as error:
            faults.append(str(error))
            continue
        form = facts.get("kind") or facts["driver"]  # polygons, boxes, raster …; GTiff, PNG, npz …
        findings = {**facts, "kind": f"{kind} ({form})", "path": thing}
        return _with_scene_notes(findings, thing, model) if kind == "scene" else findings
    raise InputError(_unknown(thing, base) or faults[0])


def _with_scene_notes(findings: Findings, thing: str, model: str | None) -> Findings:
    findings["notes"] = _scene_notes(findings)
    if model is not None:
        findings["model"] = _fit(thing, model)
        if not findings["model"]["runs"]:
            findings["problems"] = [findings["model"]["why"]]
    return findings


def _scene_notes(findings: Mapping[str, Any]) -> list[str]:
    notes = []
    if not findings.get("crs"):
        notes.append("no CRS: results are in pixel coordinates, areas in pixels")
    bands = findings["bands"]
    masked = any(band["alpha"] or "per_dataset" in band.get("mask", ()) for band in bands)
    if not masked and all(band["nodata"] is None for band in bands):
        notes.append("neither nodata nor mask: every finite pixel counts as seen")
    if findings.get("unpacked_first"):
        size = findings["bytes_pixels"] / 2**20
        notes.append(f"its compression allows no windows: unpacked once into a temporary file of {size:.0f} MiB")
    if findings.get("rotated"):
        notes.append("rotated: outputs keep the same affine; some programs show them upright")
    return notes


def _fit(scene: str, model: str) -> dict[str, Any]:
    """Whether `model` could run on `scene`, which band each channel would take, or what is missing."""
    from pipelines.bundle import load_bundle
    from pipelines.grid import Grid
    from pipelines.sources import open_for, open_source

    adapter = load_bundle(model, check_shapes=False).adapter
    with open_source(scene) as source:
        bands, shape = list(source.channels), source.shape
    try:
        with open_for(scene, adapter) as source:
            imputed = source.imputed
    except InputError as error:
        return {"name": model, "runs": False, "why": str(error), "channels": list(adapter.channels.names)}
    taken = {name: "imputed" if absent else "found" for name, absent in zip(adapter.channels.names, imputed)}
    tiles = len(Grid(shape, adapter.tile, adapter.tile_overlap))
    return {"name": model, "runs": True, "channels": taken, "bands": bands, "tiles": tiles}


def _begins_as_dicom(path: Path) -> bool:
    """By the word after the preamble: other files are not opened by pydicom for a guess."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _folder(path: Path, model: str | None) -> Findings:
    from pipelines.bundle import is_bundle

    for folder in (path, path / "bundle"):
        if is_bundle(folder):
            return _bundle(str(folder))
    if is_volume(path):
        return describe_volume(path, model)
    from pipelines.pairing import find_pairs

    pairs = find_pairs([path])
    return {
        "kind": "a folder of scenes",
        "path": str(path),
        "scenes": len(pairs),
        "labelled": sum(pair.labels is not None for pair in pairs),
        "pairs": {Path(pair.scene).name: Path(pair.labels).name if pair.labels else None for pair in pairs},
    }


def _bundle(reference: str) -> Findings:
    from pipelines.bundle import load_bundle

    bundle = load_bundle(reference, check_shapes=False)
    findings: Findings = {
        "kind": "a model bundle",
        "path": reference,
        "folder": str(bundle.folder),
        "sha256": bundle.sha256,
        "model": _without_defaults(bundle.config),
        **_adapter(bundle.adapter),
        "thresholds": dict(bundle.thresholds),
        "scores": _numbers(bundle.metrics),
    }
    training = bundle.provenance.get("training")
    if training:
        findings["training"] = training
    return findings


def _without_defaults(config: Any) -> dict[str, Any]:
    """The settings that differ from the published model, and always those that decide what goes in and out."""
    plain = type(config)().to_dict()
    always = ("architecture", "backbone", "in_channels", "num_classes", "num_queries")
    return {k: v for k, v in config.to_dict().items() if k in always or v != plain[k]}


def _adapter(adapter: Any) -> dict[str, Any]:
    return {
        "adapter": adapter.name,
        "channels": {c.name: _channel(c) for c in adapter.channels},
        "classes": {c.name: _class(c) for c in adapter.classes},
        "overlap": adapter.overlap,
        "tile": f"{adapter.tile} px, overlap {adapter.tile_overlap} px",
    }


def _channel(channel: Any) -> str:
    sought = ", ".join(f"band {f}" if isinstance(f, int) else str(f) for f in channel.find)
    missing = {"mean": "; missing: its mean", "zero": "; missing: 0", None: ""}[channel.impute]
    return f"(x - {channel.offset:g}) / {channel.scale:g}" + (f"; also {sought}" if sought else "") + missing


def _class(item: Any) -> str:
    values = f", in labels: {', '.join(map(str, item.values))}" if item.values else ""
    return f"{item.kind}{values}"


def _numbers(metrics: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """The metrics' overall numbers, flat: `heldout.pq`; not those per class."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, bool) or key == "per_class":
            continue
        if isinstance(value, (int, float)):
            flat[f"{path}{key}"] = value
        elif isinstance(value, Mapping):
            flat |= _numbers(value, f"{path}{key}.")
    return flat


def _config(path: Path) -> Findings:
    """A run config: what it would train on and whether its files are there."""
    from pipelines.config import SAMPLE, load_config

    config = load_config(path)
    adapter = config.adapter if isinstance(config.adapter, Mapping) else {}
    named = [name for item in config.data for name in (item.source, item.labels) if name]
    absent = [name for name in named if not name.startswith(SAMPLE) and not Path(name.split("#", 1)[0]).exists()]
    findings: Findings = {
        "kind": "a run config",
        "path": str(path),
        "name": config.name,
        "data": {item.source: item.labels for item in config.data},
        "model": {"preset": config.model.preset, **config.model.overrides},
        "train": config.train.model_dump(exclude_none=True),
    }
    if adapter.get("volume"):  # its data are patterns and folders of cases
        return {**findings, **describe_cases(config)}
    findings["problems"] = [f"{name}: no such file" for name in absent]
    return findings


def _adapter_file(path: Path) -> Findings | None:
    """An adapter saved alone, or None where the JSON is something else (labels, most likely)."""
    from adapters.base import DomainAdapter

    try:
        adapter = DomainAdapter.load(path)
    except InputError:
        return None
    return {"kind": "an adapter", "path": str(path), **_adapter(adapter)}


def _unknown(thing: str, base: Path) -> str | None:
    """What a file that no reader takes looks like, or None where its bytes say nothing."""
    try:
        with base.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        return f"{thing}: {error.strerror or error}"
    if not head:
        return f"{thing}: the file is empty"
    what = next((text for magic, text in MAGIC if head.startswith(magic)), None)
    return f"{thing}: {what}; expected a scene, labels, a run config or a bundle" if what else None


def _lines(facts: Mapping[str, Any], depth: int) -> Iterator[str]:
    """`key  value` lines, nested mappings indented, long lists in one line."""
    width = max((len(str(key)) for key in facts), default=0)
    for key, value in facts.items():
        start = f"{'  ' * depth}{key!s:<{width}}  "
        if isinstance(value, Mapping) and value:
            yield start.rstrip()
            yield from _lines(value, depth + 1)
        else:
            yield f"{start}{_text(value)}".rstrip()


def _shown(findings: Mapping[str, Any]) -> dict[str, Any]:
    """The findings as a reader wants them: a line a band, sizes with units, nothing that is empty."""
    shown = {key: value for key, value in findings.items() if key not in ("path", "kind", "problems", "notes")}
    if isinstance(shown.get("shape"), list):
        shown["shape"] = " × ".join(map(str, shown["shape"])) + " px (height × width)"
    if isinstance(shown.get("bands"), list):
        shown["bands"] = {str(band["index"]): _band(band) for band in shown["bands"]}
    for key in [key for key in shown if key.startswith("bytes_") and shown[key] is not None]:
        shown[key] = f"{shown[key] / 2**20:.1f} MiB"
    return shown


def _band(band: Mapping[str, Any]) -> str:
    parts = [" / ".join(band["names"]), band["dtype"]]
    parts += ["alpha"] if band["alpha"] else []
    parts += [f"nodata {_text(band['nodata'])}"] if band["nodata"] is not None else []
    if (band.get("scale") or 1, band.get("offset") or 0) != (1, 0):
        parts.append(f"means value × {band['scale']:g} + {band['offset']:g}")
    return ", ".join(parts)


def _text(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_text(item)}" for key, item in value.items())
    return str(value)
