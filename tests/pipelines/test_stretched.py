"""A picture with its own contrast: the same in any tile, blind to what has no data, and only where it is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapters.base import DomainAdapter
from adapters.errors import InputError
from pipelines.sources import open_for
from pipelines.sources.arrays import ArraySource
from pipelines.sources.stretched import SAMPLE_SIDE, StretchedSource, limits
from tests.models import adapter as tiny_adapter


def array_source(folder: Path, values: np.ndarray) -> ArraySource:
    np.save(folder / "values.npy", values)
    return ArraySource(folder / "values.npy")


def picture(tmp_path: Path, values: np.ndarray, name: str = "picture.png") -> Path:
    Image.fromarray(values).save(tmp_path / name)
    return tmp_path / name


def adapter(**changes: object) -> DomainAdapter:
    return replace(tiny_adapter(channels=("red", "green", "blue"), photos=True), **changes)


def test_exposure_no_longer_matters(tmp_path: Path) -> None:
    """A picture at a quarter of the light is the same to the model, to a rounding of its bytes."""
    rng = np.random.default_rng(0)
    bright = rng.integers(20, 220, (48, 64, 3), dtype=np.uint8) // 4 * 4
    dark = (bright // 4).astype(np.uint8)
    wanted = adapter(stretch=(1.0, 99.0))
    with (
        open_for(picture(tmp_path, bright, "a.png"), wanted) as one,
        open_for(picture(tmp_path, dark, "b.png"), wanted) as other,
    ):
        first, second = one.read()[0], other.read()[0]
    np.testing.assert_allclose(first, second, atol=0.01)
    assert first.min() == 0 and first.max() == 255 and first.dtype == np.float32


def test_a_tile_is_what_the_whole_picture_has_there(tmp_path: Path) -> None:
    values = np.zeros((60, 80, 3), np.uint8)
    values[10:20, 10:20] = 90  # one object in a corner: a tile without it must stay dark
    values[40:] = 7
    with open_for(picture(tmp_path, values), adapter(stretch=(0, 100))) as source:
        whole = source.read()[0]
        window = (slice(30, 60), slice(25, 70))
        np.testing.assert_array_equal(source.read(window)[0], whole[:, 30:60, 25:70])
        np.testing.assert_array_equal(source.view(window).read()[0], whole[:, 30:60, 25:70])
        assert whole[:, 45, 45].max() == pytest.approx(255 * 7 / 90, rel=1e-5)


def test_pixels_without_data_do_not_set_the_contrast(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(100, 200, (1, 40, 40)).astype(np.float32)
    values[0, :10] = np.nan
    with_holes = StretchedSource(array_source(tmp_path, values), (0.0, 100.0))
    found, valid = with_holes.read()
    assert not valid[:10].any() and valid[10:].all()
    seen = values[0, 10:]
    np.testing.assert_allclose(found[0, 10:], (seen - seen.min()) / (seen.max() - seen.min()) * 255, atol=1e-3)


def test_one_value_alone_stays(tmp_path: Path) -> None:
    source = StretchedSource(array_source(tmp_path, np.full((1, 8, 8), 42.0, np.float32)), (1.0, 99.0))
    assert (source.read()[0] == 42).all()


def test_large_pictures_are_judged_by_samples_and_a_damaged_one_does_not_stop_it() -> None:
    side = 2 * SAMPLE_SIDE

    asked: list[int] = []

    class Ramp:
        channels, imputed, shape = ("grey",), (False,), (16, side)

        def read(self, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
            columns = window[1]
            if columns.start == 0:
                raise InputError("damaged")
            asked.append(columns.stop - columns.start)
            values = np.broadcast_to(np.arange(columns.start, columns.stop), (1, 16, columns.stop - columns.start))
            return values.astype(np.float32), np.ones((16, columns.stop - columns.start), bool)

    low, high = limits(Ramp(), (0.0, 100.0)).ravel()  # type: ignore[arg-type]
    assert sum(asked) < SAMPLE_SIDE
    assert high == side - 1 and 0 < low < side / 4


@pytest.mark.parametrize("wrong", [(5,), (50, 10), (-1, 50), (0, 101), "ab", (True, 50), (1, "9")])
def test_percentiles_that_are_none(wrong: object) -> None:
    with pytest.raises(InputError, match="stretch: expected"):
        adapter(stretch=wrong)


def test_it_travels_with_the_adapter() -> None:
    one = adapter(stretch=[1, 99.8])
    assert DomainAdapter.from_dict(one.to_dict()) == one and one.stretch == (1.0, 99.8)
    assert DomainAdapter.from_dict(adapter().to_dict()).stretch is None
