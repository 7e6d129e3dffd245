"""Frames of a video as sources, through PyAV: decoded one after another, upright, in red, green and blue of 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from adapters.channels import ChannelSet
from adapters.errors import InputError
from pipelines.sources.base import Geometry, Selection, Source
from pipelines.sources.picture import NAMES

SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class Frame:
    """A frame at `seconds` from the start; pixels (H, W, 3) uint8, None where it cannot be decoded."""

    seconds: float
    pixels: NDArray[np.uint8] | None


class FrameSource(Source):
    """One frame as a picture: all of its pixels are valid."""

    def __init__(self, path: Path, pixels: NDArray[np.uint8], channels: ChannelSet | None = None) -> None:
        self._pixels = pixels
        self._selection = Selection.of(NAMES, channels, path)
        super().__init__(
            path,
            (pixels.shape[0], pixels.shape[1]),
            self._selection.names,
            self._selection.result_dtype(np.dtype(np.uint8)),
            None,
            Geometry(None, Affine.identity()),
            self._selection.imputed,
        )

    def _read(self, rows: slice, columns: slice) -> tuple[NDArray, NDArray[np.bool_]]:
        part = self._pixels[rows, columns]
        planes = np.ascontiguousarray(np.moveaxis(part[..., list(self._selection.present)], -1, 0))
        return self._selection.arrange(planes), np.ones(part.shape[:2], bool)

    def _close(self) -> None:
        pass


def frames(path: Path, every: float) -> Iterator[Frame]:
    """The first frame, and then the first after every further `every` seconds.

    A packet that cannot be decoded yields a Frame without pixels. InputError where the file is no video or none of it
    can be decoded.
    """
    import av
    from av.error import FFmpegError

    try:
        container = av.open(str(path))
    except (FFmpegError, OSError) as error:
        raise InputError(f"{path}: not a video that can be opened: {_reason(error)}") from None
    with container:
        if not container.streams.video:
            raise InputError(f"{path}: has no pictures, only sound")
        stream = container.streams.video[0]
        due, seen, seconds = 0.0, 0, 0.0
        try:
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except FFmpegError:
                    yield Frame(seconds, None)
                    continue
                for frame in decoded:
                    seconds = float(frame.time) if frame.time is not None else seconds
                    seen += 1
                    if seconds + 1e-6 >= due:
                        due = (seconds // every + 1) * every
                        pixels = frame.to_ndarray(format="rgb24")
                        turned = np.rot90(pixels, round(frame.rotation / 90)) if frame.rotation else pixels
                        yield Frame(seconds, np.ascontiguousarray(turned))
        except FFmpegError:  # the container itself ends in the middle
            yield Frame(seconds, None)
        if not seen:
            raise InputError(f"{path}: no frame can be decoded")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
