"""Names of files and folders are often the patient's: they are taken out of whatever is logged, written or recorded."""

from __future__ import annotations

import itertools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import InputError
from pipelines.volumes.source import VolumePath, stem_of

if TYPE_CHECKING:
    from pipelines.config import RunConfig

_MOST = 20_000  # names of a folder that are looked for
# Names of folders that name nobody, and words of our own messages: a folder called CT shall not blank every CT.
_PLAIN = {
    "adc", "axial", "brain", "case", "channel", "chest", "coronal", "data", "dicom", "dwi", "flair", "folder", "head",
    "image", "images", "input", "label", "labels", "mask", "mri", "nifti", "patient", "pixel", "sagittal", "scan",
    "scans", "series", "slice", "slices", "studies", "study", "t1w", "t2w", "thorax", "tmp", "volume", "volumes",
}  # fmt: skip


def paths_of(path: VolumePath) -> list[Path]:
    """The files and folders a study was given as."""
    if isinstance(path, str | Path):
        return [Path(path)]
    return [Path(one) for one in (path.values() if isinstance(path, Mapping) else path)]


def discreet(text: str, path: VolumePath, number: int) -> str:
    """The text with `study N` for every path of the study, and `***` for the names of files and folders around it."""
    for place in sorted(paths_of(path), key=lambda one: len(str(one)), reverse=True):
        for spelling in dict.fromkeys((str(place), str(place.absolute()), str(place.resolve()))):
            text = text.replace(spelling, f"study {number}")
        for name in _names(place):
            # whole names only: a file called `a` is no reason to blank every a
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "***", text)
    return " ".join(text.split())


def _names(place: Path) -> Iterator[str]:
    """Names in and around a study, longest first, those without a letter left out."""
    inside = itertools.islice(place.rglob("*"), _MOST) if place.is_dir() else ()
    names: set[str] = set()
    for one in (place, *inside):
        names |= {one.name, stem_of(one)}
    names |= set(place.absolute().parent.parts[-2:])
    telling = (n for n in names if len(n) > 2 and re.search(r"[^\W\d_]", n) and n.casefold() not in _PLAIN)
    yield from sorted(telling, key=len, reverse=True)


def without_paths(text: str) -> str:
    """The text with `***` for every path, up to the colon, comma or bracket that ends it: names may hold blanks."""
    return re.sub(r"[^\s:;,()'\"]*/[^:;,()'\"]*", "***", text)


@contextmanager
def nameless_errors(config: RunConfig) -> Iterator[None]:
    """Where the config is one of volumes, what InputError says names no file: a scheduler keeps it and shows it."""
    try:
        yield
    except InputError as error:
        from pipelines.labelled import load_adapter

        if load_adapter(config).volume is None:
            raise
        raise InputError(f"{without_paths(str(error))} (maskbridge on the command line names the file)") from None


@contextmanager
def discreet_pydicom() -> Iterator[None]:
    """Neither warnings nor log lines of pydicom: they quote the values they complain of, a name among them."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
