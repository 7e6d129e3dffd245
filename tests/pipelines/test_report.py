"""The report page: packed outlines, overview, tables, and the page itself in a real browser without a network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from maskformer.masks import MaskSet
from pipelines import report_shapes
from pipelines.report import BandStatistics, ReportData, ScoreRow, band_statistics, overview, render, write_report
from pipelines.report_charts import curve_charts, nice_ticks
from pipelines.report_overview import display_bands
from pipelines.report_shapes import pack_shapes, varints, zigzag
from pipelines.report_tables import band_remark, result_sentence, score_table, verdicts
from tests.browser import browser, opened

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class FakeSource:
    """A scene that makes its windows when asked: an RGB gradient, with no data in the rows above `empty`."""

    def __init__(self, shape: tuple[int, int], channels=("red", "green", "blue"), dtype="uint8", empty=0, peak=255):
        self.shape, self.channels, self.dtype, self.empty, self.peak = shape, channels, dtype, empty, peak

    def read(self, window: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(window[0].start, window[0].stop)[:, None]
        cols = np.arange(window[1].start, window[1].stop)[None]
        ramp = (rows + cols) * np.float32(self.peak / (sum(self.shape) - 2))
        array = np.repeat(ramp[None].astype(self.dtype), len(self.channels), axis=0)
        return array, np.broadcast_to(rows >= self.empty, ramp.shape)


def boxes(shape: tuple[int, int], corners: list[tuple[int, int, int, int]], labels: list[int], scores=None) -> MaskSet:
    """Rectangles (top, left, bottom, right) as a mask set."""
    runs = [(row, left, right) for top, left, bottom, right in corners for row in range(top, bottom)]
    offsets = np.cumsum([0, *(bottom - top for top, _, bottom, _ in corners)])
    return MaskSet(shape, np.array(runs, np.int32).reshape(-1, 3), offsets, np.array(labels), scores)


def report_data(**changes: Any) -> ReportData:
    """Three objects: two crowns that overlap at (60, 60), a shadow apart."""
    shape = (200, 300)
    picture, scale = overview(FakeSource(shape))
    objects = boxes(
        shape,
        [(20, 20, 80, 80), (40, 40, 70, 90), (120, 200, 160, 260)],
        [0, 0, 1],
        np.array([0.9, 0.4, 0.75], np.float32),
    )
    data = ReportData(
        scene="meadow",
        model="crowns, version 3",
        date="2026-11-22",
        shape=shape,
        class_names=("tree crown", "shadow"),
        class_colours=("#1b9e77", "#d95f02"),
        overview=picture,
        scale=scale,
        objects=objects,
    )
    return replace(data, **changes)


def labelled(**changes: Any) -> ReportData:
    history = [{"step": i, "seconds": i * 2.0, "total": 3.0 / i, "iou": i / 20} for i in range(1, 11)]
    scores = (
        ScoreRow(
            "mask model", {"iou": 0.61, "f1_50": 0.55}, {"tree crown": {"iou": 0.7}}, {"steps": 1204, "minutes": 2.5}
        ),
        ScoreRow(
            "per-pixel U-Net", {"iou": 0.63, "f1_50": 0.5}, {"tree crown": {"iou": 0.6}}, {"learning_rate": 0.0003}
        ),
        ScoreRow("trivial: everything", {"iou": 0.3, "f1_50": None}),
    )
    shape = (200, 300)
    return report_data(
        truth=boxes(shape, [(22, 22, 82, 82)], [0]),
        semantic=np.pad(np.ones((60, 60), np.uint8), ((20, 120), (20, 220))),
        heldout=(slice(0, 100), slice(150, 300)),
        scores=scores,
        curves={"mask model": history, "per-pixel U-Net": history[:5]},
        run={"version": "0.1.0", "timings_s": {"read": 1.25}, "peak_rss_bytes": 2_500_000_000},
        **changes,
    )


# ---- packing --------------------------------------------------------------------------------------------------------


def unpack_varints(text: str) -> list[int]:
    """The page's decoder, written a second time."""
    values, value, shift = [], 0, 0
    for byte in base64.b64decode(text):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value = shift = 0
    return values


def unpack_polygons(payload: dict[str, Any]) -> list[shapely.Geometry]:
    """Packed outlines as geometries, by the even-odd rule."""
    rings, points = iter(unpack_varints(payload["points"])), unpack_varints(payload["rings"])
    steps = np.array([(v >> 1) ^ -(v & 1) for v in unpack_varints(payload["steps"])]).reshape(-1, 2)
    corners, start, result = np.cumsum(steps, axis=0), 0, []
    for count in points:
        shape: shapely.Geometry = shapely.Polygon()
        for _ in range(count):
            length = next(rings)
            shape = shape.symmetric_difference(shapely.Polygon(corners[start : start + length]))
            start += length
        result.append(shape)
    return result


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=50))
def test_varints_come_back(values: list[int]) -> None:
    text = base64.b64encode(varints(zigzag(np.array(values, np.int64)))).decode()
    assert [(v >> 1) ^ -(v & 1) for v in unpack_varints(text)] == values


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_small_objects_keep_every_pixel(seed: int) -> None:
    """Up to 10 x 10 px the share of their size forbids any change, holes and separate parts included."""
    masks = np.random.default_rng(seed).random((4, 10, 12)) < 0.6
    objects = MaskSet.from_dense(masks[masks.any((1, 2))], np.zeros(masks.any((1, 2)).sum(), int))
    packed = pack_shapes(objects)
    order = np.argsort(-objects.areas, kind="stable")
    for polygon, index in zip(unpack_polygons(packed.payload), order, strict=True):
        assert polygon.area == objects.areas[index]
    assert (np.frombuffer(base64.b64decode(packed.payload["ids"]), "<i8") == objects.ids[order]).all()


def test_large_objects_move_by_a_pixel_at_most() -> None:
    rows = np.arange(100)
    half = np.sqrt(50.0**2 - (rows - 49.5) ** 2)
    runs = np.stack([rows, np.round(60 - half), np.round(60 + half)], axis=1).astype(np.int32)
    disc = MaskSet((100, 120), runs, np.array([0, 100]), np.array([0]))
    packed = pack_shapes(disc)
    polygon = unpack_polygons(packed.payload)[0]
    exact = shapely.union_all([shapely.box(left, row, right, row + 1) for row, left, right in runs.tolist()])
    assert shapely.hausdorff_distance(polygon, exact, densify=0.1) <= 1.0
    assert shapely.get_num_coordinates(polygon) < shapely.get_num_coordinates(exact) / 4


def test_what_does_not_fit_is_left_out_by_area_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    corners = [(5 * i, 0, 5 * i + 4, 2 + i) for i in range(100)]
    objects = boxes((500, 110), corners, [0] * 100)
    packed = pack_shapes(objects, max_bytes=3000)
    size = sum(len(v) for v in packed.payload.values() if isinstance(v, str))
    assert 10 < packed.kept < 100 and size <= 3000
    kept = np.frombuffer(base64.b64decode(packed.payload["areas"]), "<f8")
    assert kept.tolist() == sorted(objects.areas.tolist(), reverse=True)[: packed.kept]
    assert f"{packed.kept} largest of 100 objects" in packed.account("objects")
    assert f"the {100 - packed.kept} others" in packed.account("objects")
    monkeypatch.setattr(report_shapes, "MAX_OBJECTS", 7)
    assert pack_shapes(objects).kept == 7
    assert "7 largest of 100 objects" in render(report_data(shape=(500, 110), objects=objects))


def test_no_objects_at_all() -> None:
    page = render(report_data(objects=MaskSet.empty((200, 300))))
    assert "No objects were found." in page and "half of them" not in page


# ---- overview and statistics ----------------------------------------------------------------------------------------


def test_overview_is_the_mean_of_blocks_and_white_without_data() -> None:
    source = FakeSource((103, 57), empty=10)
    picture, scale = overview(source, longest=26)
    assert scale == 4.0 and picture.shape == (26, 15, 3) and picture.dtype == np.uint8
    array, _ = source.read((slice(0, 103), slice(0, 57)))
    assert (picture[:2] == 255).all()
    assert abs(int(picture[5, 3, 0]) - array[0, 20:24, 12:16].mean()) <= 1
    assert abs(int(picture[2, 3, 0]) - array[0, 10:12, 12:16].mean()) <= 1  # the half of the block that has data
    assert abs(int(picture[25, 14, 0]) - array[0, 100:, 56:].mean()) <= 1  # the cut block in the corner


@pytest.mark.parametrize(("dtype", "peak"), [("uint16", 900), ("float32", 0.3), ("uint8", 40)])
def test_overview_stretches_what_a_screen_cannot_show(dtype: str, peak: float) -> None:
    picture, _ = overview(FakeSource((60, 60), ("pan",), dtype, peak=peak))
    assert picture.shape == (60, 60, 3) and picture.min() == 0 and picture.max() == 255
    assert (picture[..., 0] == picture[..., 2]).all()


def test_overview_of_constant_or_empty_scenes() -> None:
    assert (overview(FakeSource((9, 9), ("pan",), "uint16", peak=0))[0] == 128).all()
    assert (overview(FakeSource((9, 9), empty=9))[0] == 255).all()


def test_colours_are_found_by_name() -> None:
    assert display_bands(("nir", "Blue", "green", "RED")) == [3, 2, 1]
    assert display_bands(("b1", "b2", "b3", "b4")) == [0, 1, 2]
    assert display_bands(("a", "b")) == [0]


def test_band_statistics_over_windows_equal_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.report_overview.WINDOW", 16)
    source = FakeSource((50, 37), empty=5, dtype="uint16", peak=4000)
    red = band_statistics(source, {"red": (100.0, 10.0)})[0]
    values = source.read((slice(5, 50), slice(0, 37)))[0][0].astype(float)
    expected = (values.mean(), values.std(), values.min(), values.max(), 0.1, 100.0)
    found = (red.mean, red.std, red.minimum, red.maximum, red.nodata_share, red.trained_mean)
    assert found == pytest.approx(expected)


def test_band_remarks() -> None:
    usual = BandStatistics("red", 100, 20, 0, 255, 0.0, 110, 20)
    assert band_remark(usual) == ""
    assert "2.5 training std darker" in band_remark(replace(usual, mean=60))
    assert "0.25 times the spread" in band_remark(replace(usual, std=5))
    assert band_remark(replace(usual, trained_mean=None)) == ""


# ---- tables and charts ----------------------------------------------------------------------------------------------


def test_best_is_bold_whoever_it_is() -> None:
    rows = [
        ScoreRow("a", {"iou": 0.5, "mae": 2.0}),
        ScoreRow("b", {"iou": 0.60001, "mae": 3.0}),
        ScoreRow("c", {"iou": 0.6}),
    ]
    table = score_table(rows)
    assert table.head == ["Model", "IoU", "count error"]
    bold = {(name, i) for name, cells in table.rows for i, cell in enumerate(cells) if cell.best}
    assert bold == {("b", 0), ("c", 0), ("a", 1)}
    assert table.rows[2][1][1].text == "–"
    assert verdicts(rows)[0] == "IoU: b is ahead with 0.600; a has 0.500 and is number 3 of 3."
    assert verdicts([rows[1], rows[0]])[0] == "IoU: b is ahead of a (0.600 and 0.500)."
    assert verdicts([rows[2], rows[1]])[0] == "IoU: c is level with b (0.600 and 0.600)."


def test_result_sentence() -> None:
    assert result_sentence(np.array([1, 0, 1]), ("crown", "road")) == "3 objects: 2 × road, 1 × crown."
    assert result_sentence(np.zeros(1, int), ("crown",)) == "1 object: 1 × crown."


def test_curves_leave_out_auxiliary_layers_and_broken_values() -> None:
    rows = [
        {"step": i, "seconds": 60.0 * i, "mask": 1.0, "total": 5 - i, "mask.3": 2.0, "iou": float("nan")}
        for i in range(3)
    ]
    charts, further = curve_charts({HOSTILE: rows})
    assert [chart.title for chart in charts] == ["total loss", "mask"] and further == []
    assert "<script" not in charts[0].svg and "minutes" in charts[0].svg
    many, further = curve_charts({"a": [{"step": s, **{f"m{i}": float(s) for i in range(15)}} for s in range(2)]})
    assert len(many) == 12 and further == ["m12", "m13", "m14"] and "steps" in many[0].svg


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_the_range(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert ticks[0] <= low + 1e-6 * span and ticks[-1] >= low + span * (1 - 1e-6) and 2 <= len(ticks) <= 8


# ---- the page -------------------------------------------------------------------------------------------------------


def test_a_failing_report_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_report(target, report_data())
    before = target.read_bytes()
    with pytest.raises(TypeError):
        write_report(target, report_data(run={"a": 1}, curves={"x": None}))  # type: ignore[dict-item]
    assert target.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_colours_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="colours like"):
        report_data(class_colours=("red;background:url(http://example.org)", "#000000"))


def test_words_without_labels_and_with_them() -> None:
    bands = (BandStatistics("red", 60, 20, 0, 255, 0.031, 110, 20),)
    bare = render(report_data(statistics=bands))
    assert "came without labels" in bare and "How good is it?" not in bare and "2.5 training std darker" in bare
    assert "3.1%" in bare and "held-out part: the model" not in bare
    full = render(labelled())
    assert "per-pixel U-Net is ahead with 0.630; mask model has 0.610" in full
    assert "<strong>0.630</strong>" in full and "<strong>0.550</strong>" in full and "0.0003" in full
    assert "intersection over union" in full and "2.50 GB" in full and "1.25 s" in full
    assert "came without labels" not in full
    assert "no held-out scores were taken" in render(replace(labelled(), scores=()))


def test_names_from_outside_stay_text() -> None:
    page = render(
        labelled(
            scene=HOSTILE,
            model=HOSTILE,
            class_names=(HOSTILE, "b"),
            warnings=(HOSTILE,),
            crs=HOSTILE,
        )
    )
    assert "<script>alert" not in page and "<img src=x" not in page
    assert len(re.findall(r"<script", page)) == 2
    scene = re.search(r'<script type="application/json" id="scene-data">(.*?)</script>', page, re.S)
    assert scene is not None and json.loads(scene.group(1))["names"][0] == HOSTILE


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


class Viewer:
    """The open viewer, spoken to in scene coordinates."""

    def __init__(self, page: Any):
        self.page = page
        page.wait_for_selector(".stage.live")
        page.wait_for_selector("canvas[data-view]")
        self.canvas = page.locator("#canvas")
        self.canvas.scroll_into_view_if_needed()

    def view(self) -> list[float]:
        return [float(v) for v in self.canvas.get_attribute("data-view").split()]

    def place(self, x: float, y: float) -> tuple[float, float]:
        left, top, zoom = self.view()
        box = self.canvas.bounding_box()
        return box["x"] + (x - left) * zoom, box["y"] + (y - top) * zoom

    def scene(self, x: float, y: float) -> tuple[float, float]:
        left, top, zoom = self.view()
        box = self.canvas.bounding_box()
        return left + (x - box["x"]) / zoom, top + (y - box["y"]) / zoom

    def colour(self, x: float, y: float) -> list[int]:
        """What is drawn at a place of the scene, after the next frames."""
        left, top, zoom = self.view()
        return self.page.evaluate(
            """([x, y]) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
                done([...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3));
            })))""",
            [(x - left) * zoom, (y - top) * zoom],
        )

    def picked(self) -> str:
        return self.page.locator("#picked").inner_text()

    def click(self, x: float, y: float) -> str:
        self.page.mouse.click(*self.place(x, y))
        return self.picked()


def test_page_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    """Wheel, drag, layers, clicks, score slider, keys; and not one request."""
    data = labelled()
    write_report(tmp_path / "report.html", data)
    with opened(chromium, tmp_path / "report.html") as screen:
        viewer = Viewer(screen.page)
        first = viewer.view()
        target = tuple(round(v) for v in viewer.place(60, 60))
        under = viewer.scene(*target)
        screen.page.mouse.move(*target)
        screen.page.mouse.wheel(0, -300)
        screen.page.wait_for_function("before => canvas.dataset.view.split(' ')[2] > before", arg=first[2])
        zoomed = viewer.view()
        assert zoomed[2] > first[2] * 1.3
        assert viewer.scene(*target) == pytest.approx(under, abs=0.2)  # the wheel zooms about the pointer

        screen.page.mouse.down()
        screen.page.mouse.move(target[0] + 50, target[1] + 30, steps=4)
        screen.page.mouse.up()
        assert viewer.view()[:2] == pytest.approx([zoomed[0] - 50 / zoomed[2], zoomed[1] - 30 / zoomed[2]], abs=0.5)
        assert "Click an object" in viewer.picked()  # a drag is not a click
        screen.page.click("#fit")
        assert viewer.view() == pytest.approx(first)

        # A click names the object; overlapping ones are all listed and taken in turn.
        ids, areas = data.objects.ids.tolist(), data.objects.areas.tolist()
        text = viewer.click(230, 140)
        assert f"id {ids[2]}" in text and "shadow" in text and "score 0.75" in text and f"{areas[2]:,}"[-3:] in text
        text = viewer.click(60, 60)
        assert "2 objects here" in text and f"id {ids[0]}" in text and f"id {ids[1]}" in text
        pressed = screen.page.locator('#picked button[aria-pressed="true"]')
        assert f"id {ids[1]}" in pressed.inner_text() and "score 0.40" in pressed.inner_text()
        viewer.click(60, 60)
        assert f"id {ids[0]}" in pressed.inner_text()
        assert "No object here" in viewer.click(285, 190)

        # Each layer changes the drawing; what lies under two objects of a class is filled too.
        for layer, (x, y) in {
            "picture": (285, 180),
            "outlines": (260, 140),
            "fill": (60, 60),
            "semantic": (30, 30),
            "truth": (82, 81),
            "heldout": (160, 99.5),
        }.items():
            box = screen.page.locator(f'[data-layer="{layer}"]')
            before = viewer.colour(x, y)
            box.click()
            assert viewer.colour(x, y) != before, layer
            box.click()
            assert viewer.colour(x, y) == before, layer

        screen.page.locator('[data-class="1"]').uncheck()
        assert "2 of 3 objects shown" in screen.page.inner_text("#shown")
        assert "No object here" in viewer.click(230, 140)
        screen.page.locator('[data-class="1"]').check()
        screen.page.locator("#score").fill("0.5")
        assert "2 of 3 objects shown" in screen.page.inner_text("#shown")
        assert f"id {ids[1]}" not in viewer.click(60, 60)

        # Without a mouse.
        viewer.canvas.focus()
        screen.page.keyboard.press("n")
        assert f"id {ids[0]}" in viewer.picked()
        before_keys = viewer.view()
        screen.page.keyboard.press("+")
        screen.page.keyboard.press("ArrowRight")
        assert viewer.view()[2] > before_keys[2]
        screen.page.keyboard.press("Escape")
        assert "No object here" in viewer.picked()
        assert screen.requests == [] and screen.complaints == []


def test_hostile_names_run_nothing_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    page = labelled(scene=HOSTILE, class_names=(HOSTILE, HOSTILE), warnings=(HOSTILE,))
    write_report(tmp_path / "report.html", page)
    with opened(chromium, tmp_path / "report.html", width=420, height=800) as screen:
        alerts: list[str] = []
        screen.page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        viewer = Viewer(screen.page)
        assert HOSTILE in viewer.click(30, 30)
        assert screen.page.inner_text("h1") == HOSTILE
        assert screen.page.evaluate("document.documentElement.scrollWidth") <= 420  # nothing sticks out on a phone
        assert alerts == [] and screen.requests == [] and screen.complaints == []


def test_a_large_scene_stays_small_and_usable(chromium: Any, tmp_path: Path) -> None:
    """10 000² pixels and 20 000 objects: under 20 MB, and the last of them can be found."""
    shape, side = (10_000, 10_000), 142
    grid = [(70 * r + 5, 70 * c + 5, 70 * r + 55, 70 * c + 45) for r in range(side) for c in range(side)][:20_000]
    objects = boxes(shape, grid, [i % 2 for i in range(len(grid))])
    picture, scale = overview(FakeSource(shape, ("pan",)))
    assert picture.shape == (2500, 2500, 3) and scale == 4.0
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)  # what compresses worst
    data = report_data(shape=shape, overview=noise, scale=scale, objects=objects)
    write_report(tmp_path / "report.html", data)
    assert (tmp_path / "report.html").stat().st_size < 20_000_000
    with opened(chromium, tmp_path / "report.html") as screen:
        viewer = Viewer(screen.page)
        text = viewer.click(70 * 70 + 25, 70 * 70 + 30)
        assert f"id {objects.ids[70 * side + 70]}" in text
        assert "20 000 of 20 000" in screen.page.inner_text("#shown").replace("\u202f", " ")
        assert screen.requests == [] and screen.complaints == []
