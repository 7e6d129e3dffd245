"""Which label file belongs to which scene: by name, by content, or because there is but one of each.

A folder is listed, not searched deeper than one level (`images/` and `labels/` beside each other are common).
Pictures that are labels are told from scenes by content, not by name: one whole-number band with few values,
on the canvas of another picture. (Real names lie: `road_mask_input.tif` is a scene.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import InputError

PICTURES = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".img", ".npz", ".npy")
VECTORS = (".geojson", ".gpkg", ".shp", ".parquet", ".geoparquet", ".fgb", ".csv", ".xml", ".json", ".mat")
LABEL_ARRAYS = ("msk", "mask", "masks", "label", "labels", "gt", "annotation", "y")
MOST_VALUES = 64  # a label raster of more classes is rare; a photo's band has over a hundred values
LOOKED_AT = 1024  # px of side of the corner read to tell labels from a scene


@dataclass(frozen=True)
class Pair:
    """One scene and its labels, if it has some."""

    scene: str
    labels: str | None = None


def find_pairs(data: Sequence[Path], labels: Sequence[Path] = ()) -> list[Pair]:
    """Scenes in `data` (files, folders) with their labels, from `labels` or found beside them; in order.

    Raises InputError where a path is not there or holds no picture, and where labels fit no scene or several.
    """
    found = [file for path in data for file in _files(path)]
    given = [file for path in labels for file in _files(path)]
    pictures = [file for file in found if _is_picture(file)]
    drawn = [] if given else _label_pictures(pictures)
    scenes = [picture for picture in pictures if picture not in drawn and picture not in given]
    if not scenes:
        named = ", ".join(map(str, data))
        if any(".nii" in file.suffixes for file in found):
            raise InputError(f"{named}: volumes; their run configs begin as a copy of one of configs/medical")
        raise InputError(f"{named}: no picture found; expected {', '.join(PICTURES)}")
    beside = [file for file in found if file.suffix.lower() in VECTORS and not _is_sidecar(file)]
    choice = given or [*beside, *drawn]
    if not given:
        single = [scene for scene in scenes if scene.is_file() and len(data) == 1 and data[0] == scene]
        choice += [file for scene in single for file in _siblings(scene)]
    pairs = _by_name(scenes, choice)
    _check_all_used(given, pairs)
    return [_with_own_labels(pair) for pair in pairs]


def _with_own_labels(pair: Pair) -> Pair:
    """An array file often holds picture and labels: `clouds.npz` then has its labels in `clouds.npz#msk`."""
    scene, _, _ = pair.scene.partition("#")
    if pair.labels is not None or Path(scene).suffix.lower() != ".npz":
        return pair
    from pipelines.sources.arrays import read_header

    header, _ = read_header(pair.scene)
    own = next((name for name in LABEL_ARRAYS if name in header.keys and name != header.key), None)
    return Pair(pair.scene, f"{scene}#{own}") if own else pair


def _files(path: Path) -> list[Path]:
    """The file itself, or a folder's files and those of its folders, sorted."""
    if path.is_dir():
        return sorted(f for pattern in ("*", "*/*") for f in path.glob(pattern) if f.is_file())
    if not path.exists() and not (_base(path).is_file() and _base(path) != path):
        raise InputError(f"{path}: no such file or folder")
    return [path]


def _base(path: Path) -> Path:
    """The file of `scene.npz#key:hwc`."""
    return Path(str(path).split("#", 1)[0])


def _is_picture(path: Path) -> bool:
    return _base(path).suffix.lower() in PICTURES


def _is_sidecar(path: Path) -> bool:
    """`scene.tif.aux.xml` is GDAL's note on the scene, and a run's metrics.json are no labels."""
    return path.name.lower().endswith(".aux.xml") or path.name in ("bundle.json", "metrics.json", "run.json")


def _siblings(scene: Path) -> list[Path]:
    """Label files in the folder of a scene that was named alone: those whose name begins like the scene's."""
    return [
        file
        for file in sorted(_base(scene).parent.iterdir())
        if file.suffix.lower() in VECTORS and not _is_sidecar(file) and _likeness(scene, file)
    ]


def _label_pictures(pictures: Sequence[Path]) -> list[Path]:
    """The pictures that are label rasters of others: few values, and the canvas of another picture."""
    from pipelines.sources import open_source

    if len(pictures) < 2:
        return []
    shapes, masks = {}, []
    for picture in pictures:
        with open_source(picture) as source:
            shapes[picture] = source.shape
            if len(source.channels) == 1 and source.dtype.kind in "iub" and _few_values(source):
                masks.append(picture)
    scenes = [picture for picture in pictures if picture not in masks]
    return [mask for mask in masks if any(shapes[scene] == shapes[mask] for scene in scenes)]


def _few_values(source: Any) -> bool:
    import numpy as np

    height, width = source.shape
    window = (slice(0, min(height, LOOKED_AT)), slice(0, min(width, LOOKED_AT)))
    array, _ = source.read(window)
    return len(np.unique(array)) <= MOST_VALUES


def _by_name(scenes: Sequence[Path], labels: Sequence[Path]) -> list[Pair]:
    """The label file most like each scene's name; one scene with one label file need no likeness."""
    if len(scenes) == 1 and len(set(labels)) == 1:
        return [Pair(str(scenes[0]), str(labels[0]))]
    pairs = []
    for scene in sorted(scenes):
        # Vectors before pictures: they keep objects that touch or overlap apart.
        ranked = sorted(
            {label for label in labels if _likeness(scene, label)},
            key=lambda label: (-_likeness(scene, label), _is_picture(label), _rank(label), str(label)),
        )
        pairs.append(Pair(str(scene), str(ranked[0]) if ranked else None))
    if all(pair.labels is None for pair in pairs) and len(scenes) == 1 and labels:
        best = min(labels, key=lambda label: (_is_picture(label), _rank(label), str(label)))
        return [Pair(str(scenes[0]), str(best))]
    return pairs


def _rank(label: Path) -> int:
    """Order of VECTORS: the formats that name their CRS first."""
    suffix = label.suffix.lower()
    return VECTORS.index(suffix) if suffix in VECTORS else len(VECTORS)


def _likeness(scene: Path, label: Path) -> int:
    """2 for one stem, 1 where one stem begins with the other's and a separator, else 0."""
    one, other = _base(scene).stem.casefold(), label.stem.casefold().removeprefix("gt_")  # ShanghaiTech: GT_IMG_1.mat
    if one == other:
        return 2
    short, long = sorted((one, other), key=len)
    return int(long.startswith(short) and not long[len(short)].isalnum())


def _check_all_used(given: Sequence[Path], pairs: Sequence[Pair]) -> None:
    """Labels the user named must be used: files of a folder may be left over, a lone file may not."""
    used = {pair.labels for pair in pairs}
    if given and not any(str(file) in used for file in given):
        scenes = ", ".join(pair.scene for pair in pairs[:3])
        raise InputError(f"{given[0]}: belongs to none of the scenes by its name ({scenes} …)")
