"""DICOM-SEG of objects, BINARY, through highdicom: one segment an object, overlaps kept, read back before it is named.

The patient module is copied from the source series, as the standard demands: the file holds the patient's name, unlike
everything else that is written.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from adapters.classes import ClassSet
from adapters.errors import InputError
from maskformer.masks import MaskSet
from pipelines.sinks.folder import atomic_write
from pipelines.volumes.sinks import NOTICE
from pipelines.volumes.sinks.codes import Code, code_of

log = logging.getLogger(__name__)
# highdicom takes overlapping segments as one array (slice, row, column, segment) of bytes; beyond this one file a layer
MOST_BYTES = 512 << 20
_COPIED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


def write_seg(
    path: Path, objects: MaskSet, reference: Sequence[Any] | None, classes: ClassSet, model: str = "", version: str = ""
) -> list[Path]:
    """Write `objects` (canvas: slice, row, column of the source series) as `path`; returns the files written.

    reference: the sorted datasets of the source (one for an enhanced multi-frame file). Where overlapping objects would
    need more than `MOST_BYTES`, there is a file a layer: `segmentation.dcm`, `segmentation-2.dcm`, ... No objects give
    no file: the standard has no segmentation without segments. InputError where there is no series to refer to.
    """
    if not reference:
        raise InputError(f"{path.name}: DICOM-SEG refers to the slices of a DICOM series, and there is none")
    reference = [_complete(reference[0]), *reference[1:]]
    layer = objects.layer_numbers()
    layers = int(layer.max(initial=-1)) + 1
    together = layers < 2 or objects.shape[0] * objects.shape[1] * objects.shape[2] * len(objects) <= MOST_BYTES
    groups = [np.arange(len(objects))] if together else [np.flatnonzero(layer == n) for n in range(layers)]
    written = []
    for number, group in enumerate(groups if len(objects) else []):
        target = path if number == 0 else path.with_name(f"{path.stem}-{number + 1}{path.suffix}")
        part = objects[group]
        pixels = _pixels(part, flat=layers < 2 or not together)
        made = _segmentation(part, group, pixels, reference, classes, (model, version))
        with atomic_write(target) as temporary:
            made.save_as(temporary)
            check_seg(Path(temporary), part, reference)
        written.append(target)
    return written


def read_seg(path: str | Path, reference: Sequence[Any], number: int) -> NDArray[np.bool_]:
    """Segment `number` (from 1) as (slice, row, column) on the source series, read by highdicom."""
    from highdicom.seg import segread

    return _read(segread(str(path)), reference, number)


def check_seg(path: Path, objects: MaskSet, reference: Sequence[Any]) -> None:
    """Raise RuntimeError unless every segment of the file is, voxel by voxel, the object it was made from."""
    from highdicom.seg import segread

    found = segread(str(path))
    if found.number_of_segments != len(objects):
        raise RuntimeError(f"the DICOM-SEG holds {found.number_of_segments} segments, not {len(objects)}")
    frames = 0
    for number in range(len(objects)):
        runs = objects.runs[objects.offsets[number] : objects.offsets[number + 1]]
        frames += len(np.unique(runs[:, 0]))
        # the slices it lies in: no others have a frame, as the count of all frames says below
        part = slice(int(runs[0, 0]), int(runs[-1, 0]) + 1)
        back = MaskSet.from_dense(_read(found, reference, number + 1, part)[None], [0])
        if not np.array_equal(back.runs + np.array([part.start, 0, 0, 0]), runs):
            raise RuntimeError(f"segment {number + 1} of the DICOM-SEG does not come back as it was written")
    if int(found.NumberOfFrames) != frames:
        raise RuntimeError(f"the DICOM-SEG holds {found.NumberOfFrames} frames, not {frames}")


def _read(seg: Any, reference: Sequence[Any], number: int, part: slice = slice(None)) -> NDArray[np.bool_]:
    """One segment on slices `part` of the series; `missing` frames are those in which it is empty."""
    options: dict[str, Any] = {"segment_numbers": [number], "assert_missing_frames_are_empty": True}
    if len(reference) == 1 and "NumberOfFrames" in reference[0]:
        frames = list(range(1, int(reference[0].NumberOfFrames) + 1))[part]
        pixels = seg.get_pixels_by_source_frame(reference[0].SOPInstanceUID, frames, **options)
    else:
        pixels = seg.get_pixels_by_source_instance([one.SOPInstanceUID for one in reference[part]], **options)
    return pixels[..., 0] > 0


def _complete(head: Any) -> Any:
    """The header that patient and study are copied from, with what highdicom wants to find there and scanners omit."""
    head = copy.copy(head)
    for tag in _COPIED:
        if tag not in head:
            setattr(head, tag, "")
    return head


def _pixels(objects: MaskSet, flat: bool) -> NDArray:
    """A label map where no objects meet (cheap), else (slice, row, column, segment) bytes."""
    if flat:
        return objects.to_label_map().astype(np.uint8 if len(objects) < 256 else np.uint16)
    pixels = np.zeros((*objects.shape, len(objects)), np.uint8)
    for number in range(len(objects)):
        window = _window(objects.boxes[number])
        pixels[(*window, number)] = objects[[number]].crop(window).to_dense()[0]
    return pixels


def _segmentation(
    objects: MaskSet,
    numbers: NDArray,
    pixels: NDArray,
    reference: Sequence[Any],
    classes: ClassSet,
    model: tuple[str, str],
) -> Any:
    """Same series, model and masks give the same UIDs: a study sent twice is one study to the archive."""
    import highdicom
    from highdicom.seg import Segmentation

    name, version = model[0] or "model", model[1] or "unversioned"
    digest = hashlib.sha256(objects.runs.tobytes() + objects.offsets.tobytes() + objects.labels.tobytes()).hexdigest()
    sources = [str(reference[0].SeriesInstanceUID), name, version, digest]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"maskbridge {name}"[:64],
        family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=version[:64],
    )
    return Segmentation(
        source_images=list(reference),
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=[
            _describe(place + 1, int(numbers[place]), objects[[place]], classes, algorithm, sources)
            for place in range(len(objects))
        ],
        series_instance_uid=generate_uid(entropy_srcs=["series", *sources]),
        series_number=int(reference[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=generate_uid(entropy_srcs=["instance", *sources]),
        instance_number=1,
        manufacturer="maskbridge",
        manufacturer_model_name=name[:64],
        software_versions=version[:64],
        device_serial_number="none",
        content_description=NOTICE.capitalize(),
        content_label="MASKBRIDGE",
        series_description=f"maskbridge, {NOTICE}",
        omit_empty_frames=True,
        specific_character_set="ISO_IR 192",  # names are rewritten in UTF-8: scanners declare sets that do not exist
    )


def _describe(segment: int, number: int, one: MaskSet, classes: ClassSet, algorithm: Any, sources: list[str]) -> Any:
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription

    label = int(one.labels[0])
    name, colour = classes.classes[label].name, classes.colours[label]
    category, kind = code_of(name)
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return SegmentDescription(
        segment_number=segment,
        segment_label=f"{name} {number + 1}"[:64],
        segmented_property_category=_concept(category),
        segmented_property_type=_concept(kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_id=f"object {number + 1}",
        tracking_uid=generate_uid(entropy_srcs=["object", *sources, str(number)]),
        display_color=CIELabColor.from_rgb(red, green, blue),
    )


def _concept(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, "SCT", code.meaning)


def _window(box: NDArray) -> tuple[slice, slice, slice]:
    a, b, c = (slice(int(start), int(stop)) for start, stop in zip(box[:3], box[3:]))
    return a, b, c
