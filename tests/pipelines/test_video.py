"""Videos: frames at their times, damaged ones told, and counted over time."""

import csv
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from adapters.errors import InputError
from pipelines import count_pictures
from pipelines.bundle import Bundle
from pipelines.sources.video import frames
from tests.pipelines.test_count_pictures import OPTIONS, Rounded, bundle, pixels  # noqa: F401  (a fixture)

PER_SECOND = 4


def film(path: Path, pictures: list[np.ndarray]) -> Path:
    """A video of four frames a second; every frame by itself (no prediction), nearly without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=PER_SECOND)
        stream.width, stream.height = pictures[0].shape[1], pictures[0].shape[0]
        stream.pix_fmt, stream.time_base, stream.gop_size = "yuv420p", Fraction(1, PER_SECOND), 1
        stream.options = {"qscale": "1", "qmin": "1"}
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def grey(level: int) -> np.ndarray:
    return np.full((64, 96, 3), level, np.uint8)


def test_frames_are_taken_at_their_times(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", [grey(10 * n) for n in range(12)])
    found = list(frames(path, 1.0))
    assert [frame.seconds for frame in found] == [0.0, 1.0, 2.0]
    assert [round(float(f.pixels.mean()) / 10) for f in found] == [0, 4, 8], "the fourth and eighth frame"
    assert found[0].pixels.shape == (64, 96, 3)
    assert len(list(frames(path, 0.01))) == 12, "more often than there are frames: each once"


def test_what_is_no_video_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"text.mp4: not a video"):
        list(frames(tmp_path / "text.mp4", 1.0))
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 44100
        for packet in [*stream.encode(silence), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(InputError, match="only sound"):
        list(frames(sound, 1.0))


def test_a_damaged_packet_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi", [pixels(n) for n in range(12)])
    data = bytearray(path.read_bytes())
    middle = data.find(b"00dc", len(data) // 2) + 8
    data[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(data)
    found = list(frames(path, 0.1))
    assert 10 <= sum(frame.pixels is not None for frame in found) <= 12, "at most the damaged ones are missing"


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "build", lambda self, device="cpu": Solid())


class Solid(Rounded):
    """Counts the bright squares, however the codec has blurred their brightness."""

    def forward(self, x):
        values = (x[:, :1] * 58.395 + 123.675).round()
        steps = (((values - 100) / 10).round() * 2 + 100) * (values > 80)
        return Rounded.forward(self, (steps - 123.675) / 58.395)


@pytest.mark.usefixtures("knows")
def test_a_video_has_a_row_of_its_fullest_frame_and_all_over_time(bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    def squares(count: int) -> np.ndarray:
        """Squares of brightness 100, 110, …: far enough apart for a codec."""
        picture = np.zeros((64, 128, 3), np.uint8)
        for number in range(count):
            picture[20:36, 8 + 32 * number : 24 + 32 * number] = 100 + 10 * number
        return picture

    counts = [1, 1, 1, 1, 3, 3, 3, 3, 2, 2, 2, 2]
    path = film(tmp_path / "walk.mp4", [squares(n) for n in counts])
    run = count_pictures.count_pictures(bundle, path, tmp_path / "out", OPTIONS, every=1.0)
    (record,) = run.records
    assert record["count"] == 3 and record["video"]["frames"] == 3 and record["video"]["fullest_at_s"] == 1.0
    with (tmp_path / "out" / "walk" / "frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["count"]) for row in rows] == [1, 3, 2]
    assert rows[1]["image"] == "walk.mp4#1.00s"
    assert (tmp_path / "out" / "walk" / "over_time.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["videos"]["walk.mp4"]["mean"] == 2
    assert count_pictures.count_pictures(bundle, path, tmp_path / "out", OPTIONS).fresh == 0
