"""How sure the class map is: the blended probability of the best class at every pixel, as a uint8 raster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.sinks.cog import CogSink, HasPlace, Layout

STEPS = 200  # value 0..200 is probability 0..1: half a percent a step
NODATA = 255


class ConfidenceSink(CogSink):
    """A CogSink of probabilities; the band's scale (1/200) gives them back, 255 is no data."""

    def __init__(self, path: str | Path, shape: tuple[int, int], geometry: HasPlace | None) -> None:
        super().__init__(path, shape, geometry, Layout("uint8", nodata=NODATA, overview="average"))

    def write_probabilities(
        self, window: tuple[slice, ...], probabilities: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> None:
        """probabilities (K, h, w) in 0..1 and valid (h, w) of `window`."""
        values = np.rint(probabilities.max(0) * STEPS).astype(np.uint8)
        values[~valid] = NODATA
        self.write(window, values)

    def _describe(self, file: Any) -> None:
        file.scales = (1 / STEPS,)
        file.set_band_description(1, "probability of the best class")
