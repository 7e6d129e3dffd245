"""What every test shares: quiet dependencies, hypothesis profiles, real data, and a maker of small rasters."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Before any import of the project: these are read when the dependency is imported.
os.environ.update(
    DO_NOT_TRACK="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    NO_ALBUMENTATIONS_UPDATE="1",
    MASKBRIDGE_TRACKING="off",  # of predictions and evaluations; 2 s each, and a database in the working folder
)

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_EXAMPLES = int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "50"))

# No deadline: on a shared machine a slow moment is not a failure. In CI the examples are the same every time,
# so that a red run can be repeated.
for _profile, _derandomize in (("local", False), ("ci", True)):
    settings.register_profile(
        _profile,
        deadline=None,
        max_examples=MAX_EXAMPLES,
        derandomize=_derandomize,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """One thread for torch in the modules that use it; the others must not pay for its import."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data: MASKBRIDGE_SHARED_DATA, or shared/data beside the repository."""
    named = os.environ.get("MASKBRIDGE_SHARED_DATA")
    for folder in [Path(named)] if named else [REPOSITORY.parent / "shared" / "data"]:
        if folder.is_dir():
            return folder
    pytest.skip("shared data not present")


@pytest.fixture
def make_geotiff(tmp_path: Path) -> Callable[..., Path]:
    """Factory of small rasters in the test's own folder.

    make(array (C, H, W) or (H, W), name="scene.tif", crs=None | "EPSG:32617" | ..., transform=Affine | None,
    nodata=None, descriptions=None (one a band), colorinterp=None (rasterio names, one a band), valid=None
    (H, W) bool written as internal mask, scales=None, offsets=None, tags=None, tiled=True, block=64,
    compress="deflate", driver="GTiff", **creation options) -> Path
    """

    def make(
        array: np.ndarray,
        name: str = "scene.tif",
        *,
        crs: Any = None,
        transform: Any = None,
        nodata: float | None = None,
        descriptions: Sequence[str] | None = None,
        colorinterp: Sequence[str] | None = None,
        valid: np.ndarray | None = None,
        scales: Sequence[float] | None = None,
        offsets: Sequence[float] | None = None,
        tags: dict[str, str] | None = None,
        tiled: bool = True,
        block: int = 64,
        compress: str | None = "deflate",
        driver: str = "GTiff",
        **options: Any,
    ) -> Path:
        import warnings

        import rasterio
        from rasterio.enums import ColorInterp
        from rasterio.errors import NotGeoreferencedWarning

        bands = array[None] if array.ndim == 2 else array
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        profile: dict[str, Any] = {
            "driver": driver,
            "count": bands.shape[0],
            "height": bands.shape[1],
            "width": bands.shape[2],
            "dtype": bands.dtype.name,
            **options,
        }
        if driver == "GTiff":
            profile.update(tiled=tiled, compress=compress)
            if colorinterp is None:
                profile.setdefault("alpha", "no")  # GDAL takes a fourth 8-bit band for alpha unless told
            if tiled:
                profile.update(blockxsize=block, blockysize=block)
        for key, value in (("crs", crs), ("transform", transform), ("nodata", nodata)):
            if value is not None:
                profile[key] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with (
                rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
                rasterio.open(path, "w", **profile) as sink,
            ):
                if colorinterp is not None:
                    sink.colorinterp = [ColorInterp[c] for c in colorinterp]
                if descriptions is not None:
                    sink.descriptions = tuple(descriptions)
                if scales is not None:
                    sink.scales = tuple(scales)
                if offsets is not None:
                    sink.offsets = tuple(offsets)
                if tags:
                    sink.update_tags(**tags)
                sink.write(bands)
                if valid is not None:
                    sink.write_mask(valid)
        return path

    return make
