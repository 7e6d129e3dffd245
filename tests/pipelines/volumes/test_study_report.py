"""report.html of a study: one file, no network, three planes that show the scan and what was found where it is."""

import base64
import hashlib
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.medical import ct
from maskformer.masks import MaskSet
from pipelines.manifest import Stopwatch
from pipelines.volumes.geometry import VolumeGeometry
from pipelines.volumes.prediction import VolumeModel, VolumeOptions, VolumePredictor, VolumeResult
from pipelines.volumes.report import render, volume_text
from pipelines.volumes.report_pictures import SIDE, VOXELS, Atlas, page_grid
from pipelines.volumes.sinks.table import largest_diameters
from pipelines.volumes.source import open_volume
from pipelines.volumes.study_files import Study
from tests.browser import browser, opened
from tests.models import Oracle
from tests.pipelines.volumes.make_dicom import CANARY
from tests.pipelines.volumes.test_volume_prediction import AFFINE, FAST, save, truth

HOSTILE = "</script><script>alert(1)</script>"


def page(folder: Path, adapter: DomainAdapter | None = None, notes: tuple[str, ...] = ()) -> str:
    """Two overlapping objects and one apart, on an oblique grid."""
    path = save(folder / f"{CANARY}.nii.gz", (truth() * 50).astype(np.int16))
    names = ClassSet((Class("organ"), Class(HOSTILE, colour="#d95f02")))
    adapter = adapter or DomainAdapter("a", ChannelSet((Channel.window("grey", -50, 150, (1,)),)), names)
    dense = np.zeros((3, 20, 22, 16), bool)
    dense[0, 2:12, 3:12, 2:9] = dense[1, 6:16, 6:16, 4:10] = dense[2, 17, 20, 14] = True
    objects = MaskSet.from_dense(dense, [0, 1, 1], [0.9, 0.5, 0.25])
    labels = (dense[0] + 2 * (dense[1] | dense[2])).clip(0, 2).astype(np.uint8)
    predictor = VolumePredictor(VolumeModel(Oracle(2), adapter, name="test"), VolumeOptions(**FAST))
    with open_volume(path, adapter.channels) as source:
        study = Study(source, "0" * 64, "study-1", "key", Stopwatch(), list(notes))
        diameters = largest_diameters(objects, source.geometry)
        return render(study, predictor, VolumeResult(labels, objects, 0), diameters)


def test_the_page_is_one_file_and_says_what_it_is(tmp_path: Path) -> None:
    text = page(tmp_path, notes=("taken: <CT>",))
    assert "esearch use only" in text and "study-1" in text and "3 objects" in text
    assert CANARY not in text and HOSTILE not in text and "taken: &lt;CT&gt;" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    script = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not re.search(r'(src|href)="(?!data:)', text) and "http://" not in text and "https://" not in text


def test_diameters_are_listed_and_classes_that_are_not_there_are_named_apart(tmp_path: Path) -> None:
    names = ClassSet((Class("organ"), Class("lesion"), Class("spleen"), Class("kidney")))
    text = page(tmp_path, DomainAdapter("a", ChannelSet((Channel.window("grey", -50, 150, (1,)),)), names))
    assert "Not found: spleen, kidney." in text and text.count("data-class=") == 2
    lengths = re.findall(r"<td>([\d.]+) mm</td>", text)
    wanted = np.linalg.norm(AFFINE[:3, :3] @ [9, 8, 6])  # of the box of 10 x 9 x 7 voxels, along that diagonal
    assert len(lengths) == 3 and float(lengths[-1]) == 0 and max(map(float, lengths)) >= float(f"{wanted:.3g}")


def test_sheets_hold_every_slice(tmp_path: Path) -> None:
    text = page(tmp_path)
    data = json.loads(re.search(r'id="study-data">(.*?)</script>', text, re.S)[1])
    assert sorted(data["shape"]) == [16, 20, 22]
    assert [len(layer) for layer in data["members"]] in ([2, 1], [1, 2]), "overlapping objects lie in two layers"
    assert sorted(n for layer in data["members"] for n in layer) == [0, 1, 2]
    atlas = data["atlas"]
    sheets = re.findall(r'data-layer="\d+" alt="" src="data:image/png;base64,([^"]+)"', text)
    voxels = 0
    for sheet in sheets:
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet)))).astype(int)
        numbers = picture[..., 0] + 256 * picture[..., 1]
        assert picture.shape[1] == atlas["columns"] * atlas["width"]
        voxels += (numbers > 0).sum()
    sizes = np.array([o["volume"] for o in data["objects"]]) / abs(np.linalg.det(AFFINE[:3, :3]))
    assert voxels == pytest.approx(sizes.sum(), abs=1e-2), "on the scan's own grid nothing is lost"


@pytest.mark.parametrize("shape", [(512, 512, 280), (10, 2000, 3), (1, 1, 1), (700, 700, 900)])
def test_the_page_stays_small(shape: tuple[int, int, int]) -> None:
    grid = page_grid(VolumeGeometry(shape, np.diag([0.7, -0.7, 1.0, 1]))).target
    assert math.prod(grid.shape) <= VOXELS and max(grid.shape) <= SIDE and grid.orientation == ("L", "P", "I")
    atlas = Atlas.of(grid.shape[::-1])
    lines = -(-grid.shape[2] // atlas.columns)
    assert atlas.columns * atlas.width <= 16384 and lines * atlas.height <= 16384


def test_two_windows_of_one_ct_are_two_pictures(tmp_path: Path) -> None:
    windows = ct(ClassSet((Class("a"), Class("b"))), ["soft tissue", "bone"])
    data = json.loads(re.search(r'id="study-data">(.*?)</script>', page(tmp_path, windows), re.S)[1])
    assert [p["name"] for p in data["pictures"]] == ["soft tissue", "bone"]


@pytest.mark.parametrize(
    ("mm3", "text"), [(0.5, "0.5 mm³"), (99.9, "99.9 mm³"), (612, "612 mm³"), (17400, "17.4 ml"), (1.5e6, "1.5 l")]
)
def test_volumes_as_people_read_them(mm3: float, text: str) -> None:
    assert volume_text(mm3) == text


def test_the_viewer_in_a_browser(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(page(tmp_path), encoding="utf-8")
    with browser() as running, opened(running, report) as screen:
        tab = screen.page
        tab.wait_for_selector("canvas[data-drawn]")
        tab.wait_for_timeout(300)
        assert not screen.requests and not screen.complaints
        assert "organ 1" in tab.inner_text("#here"), "it opens on the largest object"
        tab.locator("[data-show]").nth(2).click()
        tab.wait_for_timeout(200)
        assert "score 0.25" in tab.inner_text("#here")

        first = tab.locator(".plane canvas").first
        tab.locator("[data-show]").nth(0).click()
        tab.wait_for_timeout(200)
        with_colour = first.screenshot()
        for box in tab.locator("[data-class]").all():
            box.uncheck()
        tab.wait_for_timeout(200)
        assert first.screenshot() != with_colour, "classes can be taken away"

        drawn = first.get_attribute("data-drawn")
        first.focus()
        tab.keyboard.press("ArrowDown")
        tab.wait_for_timeout(200)
        assert int(first.get_attribute("data-drawn")) == int(drawn) + 1
        box = first.bounding_box()
        before = tab.locator(".plane canvas").nth(1).get_attribute("data-drawn")
        first.click(position={"x": box["width"] / 2, "y": box["height"] * 0.3})
        tab.wait_for_timeout(200)
        assert tab.locator(".plane canvas").nth(1).get_attribute("data-drawn") != before, "a click moves the others"
        tab.locator(".plane button").nth(2).click()
        assert tab.locator(".plane:visible").count() == 1
