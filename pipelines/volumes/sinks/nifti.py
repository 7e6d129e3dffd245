"""Labels and objects as NIfTI on the source's own grid: the header's geometry is copied, not computed anew.

The names of the classes travel twice: in the header, as the label table that Connectome Workbench defined and
Slicer's and MITK's readers know, and in a JSON file beside the image. Equal arrays give equal bytes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import NDArray

from adapters.classes import ClassSet
from maskformer import label_maps
from maskformer.masks import MaskSet
from pipelines.sinks.folder import atomic_write
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.sinks import NOTICE

_COMMENT, _CARET = 6, 30  # NIFTI_ECODE_*
_INTENT_LABEL = 1002
_LEVEL = 2  # of gzip; labels are long runs: level 9 saves a tenth and takes eight times as long
_SLAB = 16 << 20  # voxels in the hand at a time
# Free text of the source's header may hold a name; none of it says where voxels lie.
_TEXTS = ("descrip", "db_name", "aux_file", "intent_name", "data_type")


def write_labels(
    path: Path, labels: NDArray, geometry: VolumeGeometry, classes: ClassSet, reference: Any = None
) -> Path:
    """Write a label volume (0 nothing, k + 1 class k) as `path` (.nii.gz) and its classes as `.json` beside it.

    reference: the source's nibabel header; its qform, sform, spacing and units are kept to the bit. Without one
    (DICOM) they are made from `geometry`. uint8, or uint16 above 255.
    """
    table = {index + 1: (one.name, classes.colours[index]) for index, one in enumerate(classes.classes)}
    _write(path, _slabs(labels), geometry, reference, _smallest(int(labels.max(initial=0))), table)
    data = {"notice": NOTICE, "labels": {str(v): {"name": n, "colour": c} for v, (n, c) in table.items()}}
    _write_json(_beside(path), data)
    return path


def write_objects(
    path: Path, objects: MaskSet, geometry: VolumeGeometry, classes: ClassSet, reference: Any = None
) -> Path:
    """Write objects as `path`: value n + 1 is object n. Where objects overlap the image is 4-D: a stack of layers.

    Lossless: in each layer no two objects meet. The `.json` beside it tells the layer, class and score of each.
    """
    layer = objects.layer_numbers()
    names = [classes.classes[label].name for label in objects.labels.tolist()]
    table = {
        n + 1: (f"{name} {n + 1}", classes.colours[label])
        for n, (name, label) in enumerate(zip(names, objects.labels.tolist()))
    }
    depth = int(layer.max(initial=0)) + 1
    numbered = objects.with_labels(np.arange(1, len(objects) + 1))
    slabs = (slab for number in range(depth) for slab in _painted(numbered[layer == number]))
    _write(path, slabs, geometry, reference, _smallest(len(objects)), table, depth)
    rows = {
        str(n + 1): {"layer": int(layer[n]), "class": name, "score": round(float(objects.scores[n]), 6)}
        for n, name in enumerate(names)
    }
    _write_json(_beside(path), {"notice": NOTICE, "layers": depth, "objects": rows})
    return path


def read_objects(path: str | Path, labels: Sequence[int]) -> MaskSet:
    """The objects of `write_objects`; `labels` are their class indices. Scores are 1."""
    image: Any = nibabel.load(path)
    stack = np.asanyarray(image.dataobj)
    stack = stack if stack.ndim == 4 else stack[..., None]
    parts = [MaskSet.from_label_map(stack[..., k]) for k in range(stack.shape[3])]
    values = np.concatenate([np.setdiff1d(np.unique(stack[..., k]), [0]) for k in range(stack.shape[3])])
    whole = MaskSet.concatenate(parts)[np.argsort(values)]
    return whole.with_labels(np.asarray(labels)[np.sort(values).astype(int) - 1])


def _slabs(volume: NDArray) -> Iterator[NDArray]:
    """A volume in pieces of about _SLAB voxels, some slices of the last axis each: as they follow in the file."""
    for part in _pieces(volume.shape):
        yield volume[..., part]


def _painted(numbered: MaskSet) -> Iterator[NDArray[np.int32]]:
    """The same of the label map of objects that do not meet, whose labels are their values; never the whole of it."""
    for part in _pieces(numbered.shape):
        found = numbered.crop((slice(None), slice(None), part))
        yield label_maps.paint(found.shape, *found._flat(), found.offsets, found.labels)


def _pieces(shape: Sequence[int]) -> Iterator[slice]:
    pages = max(1, _SLAB // max(1, shape[0] * shape[1]))
    for start in range(0, shape[2], pages):
        yield slice(start, min(start + pages, shape[2]))


def _smallest(highest: int) -> np.dtype:
    return np.dtype(np.uint8 if highest < 256 else np.uint16 if highest < 65536 else np.int32)


def _write(
    path: Path,
    slabs: Iterable[NDArray],
    geometry: VolumeGeometry,
    reference: Any,
    dtype: np.dtype,
    table: dict[int, tuple[str, str]],
    depth: int = 1,
) -> None:
    header = _header(geometry, reference)
    header.set_data_dtype(dtype)
    header.set_data_shape(geometry.shape if depth == 1 else (*geometry.shape, depth))
    header.extensions.append(Nifti1Extension(_CARET, _label_table(table)))
    header.extensions.append(Nifti1Extension(_COMMENT, NOTICE.encode()))
    stored = header.get_data_dtype()  # in the header's byte order
    with (
        atomic_write(path) as temporary,
        Path(temporary).open("wb") as raw,
        # no name and no time in the gzip header: equal labels are equal bytes
        gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as file,
    ):
        header.write_to(file)
        file.write(b"\0" * (int(header["vox_offset"]) - file.tell()))
        for slab in slabs:
            file.write(slab.astype(stored).tobytes(order="F"))


def _header(geometry: VolumeGeometry, reference: Any) -> Any:
    """A single-file header with the geometry of the source, to the bit where it was NIfTI."""
    if reference is None:
        header = nibabel.Nifti1Header()
        header.set_data_shape(geometry.shape)
        header.set_sform(geometry.affine, 1)
        header.set_qform(geometry.affine, 1, strip_shears=True)
        header.set_xyzt_units("mm")
    else:
        single = nibabel.Nifti2Header if isinstance(reference, nibabel.Nifti2Header) else nibabel.Nifti1Header
        header = single(reference.binaryblock, reference.endianness, check=False)
        header["magic"] = single.default_structarr()["magic"]
        header["vox_offset"] = 0
    for text in _TEXTS:
        if text in header.keys():  # noqa: SIM118 - a header iterates over its keys but does not test for them
            header[text] = b""
    header["descrip"] = f"maskbridge, {NOTICE}".encode()
    header["intent_code"] = _INTENT_LABEL
    header.set_slope_inter(1, 0)
    for value in ("cal_min", "cal_max"):
        header[value] = 0
    return header


def _label_table(table: dict[int, tuple[str, str]]) -> bytes:
    """Connectome Workbench's label table of a volume: value, colour and name."""
    rows = ['<Label Key="0" Red="0" Green="0" Blue="0" Alpha="0"><![CDATA[background]]></Label>']
    for value, (name, colour) in table.items():
        red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
        shade = f'Red="{red:.3f}" Green="{green:.3f}" Blue="{blue:.3f}" Alpha="1"'
        rows.append(f'<Label Key="{value}" {shade}><![CDATA[{name.replace("]]>", "]] >")}]]></Label>')
    body = "".join(rows)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0">'
        f"<LabelTable>{body}</LabelTable><VolumeType><![CDATA[Label]]></VolumeType>"
        "</VolumeInformation></CaretExtension>"
    ).encode()


def _beside(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        Path(temporary).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
