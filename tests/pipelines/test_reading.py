"""A scene is read by whole blocks, each once, ahead of the model."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import InputError
from pipelines.config import PredictOptions
from pipelines.grid import Grid
from pipelines.prediction import predict_scene
from pipelines.reading import AHEAD, Waiting, read_ahead
from pipelines.sources.base import Geometry, Source
from pipelines.sources.blocks import LEAST, BlockReader
from pipelines.sources.geotiff import RasterSource
from tests.models import adapter, tiny_bundle

OPTIONS = PredictOptions(tile=96, overlap=24, score=0.05, min_area=1, device="cpu", precision="fp32", shard_tiles=2)


class Counted(Source):
    """An array that says which windows were read."""

    def __init__(self, array: np.ndarray, block: tuple[int, int] | None) -> None:
        place = Geometry(None, rasterio.Affine.identity())
        super().__init__("memory", array.shape[1:], ("a",) * len(array), array.dtype, None, place)
        self.array, self.block = array, block
        self.reads: list[tuple[slice, slice]] = []

    def _read(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        self.reads.append((rows, columns))
        return self.array[:, rows, columns], self.array[0, rows, columns] % 7 > 0


def counted(shape: tuple[int, int], block: tuple[int, int] | None) -> Counted:
    return Counted(np.random.default_rng(0).integers(0, 255, (2, *shape)).astype(np.uint8), block)


def times_decoded(reads: list[tuple[slice, slice]], block: tuple[int, int]) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for rows, columns in reads:
        for row in range(rows.start // block[0], -(-rows.stop // block[0])):
            found.update((row, column) for column in range(columns.start // block[1], -(-columns.stop // block[1])))
    return found


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    block=st.sampled_from([(16, 16), (64, 64), (128, 96), (1, 400), (8, 400), (256, 256), None]),
    tile=st.integers(20, 200),
    data=st.data(),
)
def test_every_block_once_and_every_pixel_as_it_is(shape, block, tile, data) -> None:  # type: ignore[no-untyped-def]
    grid = Grid(shape, tile, data.draw(st.integers(0, tile - 1)))
    source = counted(shape, block)
    reader = BlockReader(source, grid.tiles)
    for one in grid:
        array, valid = reader.read(one.window)
        assert (array == source.array[:, *one.window]).all()
        assert (valid == (source.array[0][one.window] % 7 > 0)).all()
    assert set(times_decoded(source.reads, block or (256, 256)).values()) == {1}
    assert reader.held == 0, "nothing is kept that no tile shows any more"


def test_a_part_of_a_scene_lies_on_the_blocks_of_its_file() -> None:
    source = counted((300, 300), (64, 64))
    part = source.view((slice(50, 290), slice(70, 300)))
    grid = Grid(part.shape, 100, 20)
    reader = BlockReader(part, grid.tiles)
    for tile in grid:
        assert (reader.read(tile.window)[0] == source.array[:, 50:290, 70:300][:, *tile.window]).all()
    assert set(times_decoded(source.reads, (64, 64)).values()) == {1}


def test_memory_holds_a_band_and_no_more() -> None:
    source = counted((2000, 600), (64, 64))
    grid = Grid(source.shape, 128, 32)
    reader, most = BlockReader(source, grid.tiles), 0
    for tile in grid:
        reader.read(tile.window)
        most = max(most, reader.held)
    assert most <= 3 * (32 + LEAST) * (600 + 64) * 3, "the overlap's rows of blocks, two planes and a mask"


def test_under_need_of_memory_some_blocks_are_decoded_twice_and_the_pixels_stay() -> None:
    source = counted((600, 1500), (64, 64))
    grid = Grid(source.shape, 128, 32)
    reader = BlockReader(source, grid.tiles, memory=90_000)
    for tile in grid:
        assert (reader.read(tile.window)[0] == source.array[:, *tile.window]).all()
        assert reader.held <= 90_000 or tile.window[1].stop < 1500
    times = Counter(times_decoded(source.reads, (64, 64)).values())
    assert times[2] and max(times) == 2


def test_strips_too_wide_to_hold_are_read_by_windows() -> None:
    source = counted((300, 3000), (8, 3000))
    grid = Grid(source.shape, 128, 32)
    reader = BlockReader(source, grid.tiles, memory=200_000)
    assert (reader.read(grid.tiles[3].window)[0] == source.array[:, *grid.tiles[3].window]).all()
    assert source.reads == [grid.tiles[3].window] and reader.held == 0


@pytest.fixture
def tiled(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    picture = np.random.default_rng(0).integers(1, 255, (3, 300, 420)).astype(np.uint8)
    place = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 3_300_000)
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", count=3, height=300, width=420, crs="EPSG:32617", transform=place,
        tiled=True, blockxsize=64, blockysize=64, compress="deflate",
    ) as file:  # fmt: skip
        file.write(picture)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "bundle", adapter(channels=("red", "green", "blue")))


def test_a_run_decodes_each_block_of_the_file_once(
    tiled: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[slice, slice]] = []
    real = RasterSource._read

    def read(self: RasterSource, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        if threading.current_thread().name.startswith("reader"):  # the report's overview is not the model's reading
            reads.append((rows, columns))
        return real(self, rows, columns)

    monkeypatch.setattr(RasterSource, "_read", read)
    folder = predict_scene(tiled, bundle, tmp_path / "out", OPTIONS)
    times = times_decoded(reads, (64, 64))
    assert len(times) == 5 * 7 and set(times.values()) == {1}
    assert all(rows.start % 64 == 0 and columns.start % 64 == 0 for rows, columns in reads)
    run = json.loads((folder / "run.json").read_text())
    assert run["shards"] > 1, "blocks that two shards show are decoded once"
    speed = run["speed"]
    assert 0 <= speed["waited_s"] <= speed["computed_s"] and 0 <= speed["waited_share"] <= 1


def test_the_file_is_closed_after_the_run(tiled: Path, bundle: Path, tmp_path: Path) -> None:
    from pipelines.reading import _KEPT

    predict_scene(tiled, bundle, tmp_path / "out", OPTIONS)
    assert _KEPT.reader is None and _KEPT.depth == 0


def test_striped_and_tiled_files_give_the_same_bytes(
    make_geotiff: Callable[..., Path], tiled: Path, bundle: Path, tmp_path: Path
) -> None:
    with rasterio.open(tiled) as file:
        striped = make_geotiff(file.read(), crs="EPSG:32617", transform=file.transform, name="striped.tif")
    one = predict_scene(tiled, bundle, tmp_path / "out", OPTIONS)
    other = predict_scene(striped, bundle, tmp_path / "out", OPTIONS)
    for name in ("semantic.tif", "objects.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


class Slow:
    """Windows that take a while; says how many were asked for."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked = seconds, 0

    def read(self, window: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
        self.asked += 1
        time.sleep(self.seconds)
        return np.zeros((1, 2, 2)), np.ones((2, 2), bool)


def test_reading_runs_ahead_of_the_model_but_not_far() -> None:
    tiles = Grid((2, 24), 2, 0).tiles
    source, waiting = Slow(0.01), Waiting()
    for number, _ in enumerate(read_ahead(source, [[tile] for tile in tiles], waiting)):
        time.sleep(0.03)
        assert number + 1 <= source.asked <= number + 2 + AHEAD
    assert 0.005 < waiting.seconds < 0.06, "the first tile alone has to be waited for"


def test_a_model_quicker_than_the_disk_waits_and_says_so() -> None:
    tiles = Grid((2, 12), 2, 0).tiles
    waiting = Waiting()
    list(read_ahead(Slow(0.02), [[tile] for tile in tiles], waiting))
    assert waiting.seconds > 0.1


def test_what_cannot_be_read_ends_the_run() -> None:
    class Broken(Slow):
        def read(self, window: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
            raise InputError("no such pixels")

    with pytest.raises(InputError, match="no such pixels"):
        list(read_ahead(Broken(0), [[tile] for tile in Grid((2, 12), 2, 0).tiles]))
