"""A good candidate passes; each of ten bad ones is refused by the rule that is there for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.bundle import Bundle, load_bundle
from pipelines.promotion.data import Expected
from pipelines.promotion.frozen import FrozenData
from pipelines.promotion.gate import RULES, Gate, Report
from pipelines.promotion.outputs import Artifact, Outputs
from pipelines.promotion.policy import Policy
from tests.pipelines.promotion import colours


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Bundle]:
    def made(*change, **settings) -> Bundle:
        return load_bundle(colours.bundle(tmp_path / "candidate", *change, **settings))

    return made


def says(report: Report, rule: str) -> str:
    return next(verdict.says for verdict in report.verdicts if verdict.rule == rule)


def test_a_better_model_passes_every_rule(gate: Gate, champion: Bundle, make) -> None:
    report = gate.judge(make(), champion)
    assert report.passed, report.refusal
    assert tuple(verdict.rule for verdict in report.verdicts) == RULES
    assert "better: iou" in says(report, "quality") and "-> 1.000" in says(report, "quality")
    assert report.to_dict()["data_digest"] == gate.data.digest


@pytest.mark.slow
def test_the_same_model_again_is_no_better(gate: Gate, champion: Bundle, make) -> None:
    report = gate.judge(make(against=colours.BLIND), champion)
    assert report.refused_by == ("quality",)
    assert "no primary score is better" in says(report, "quality") and "+0.0 points" in says(report, "quality")


def test_a_dropped_class_is_refused_by_its_scores(gate: Gate, champion: Bundle, make) -> None:
    report = gate.judge(make(colours.drop_class), champion)
    assert "quality" in report.refused_by and "class pool" in says(report, "quality")
    assert "-> 0.000" in says(report, "quality") and "allowed -2.0 points" in says(report, "quality")


def test_swapped_bands_are_refused_by_their_scores(gate: Gate, champion: Bundle, make) -> None:
    report = gate.judge(make(colours.swap_bands), champion)
    assert "quality" in report.refused_by and "-> 0.000" in says(report, "quality")


def test_a_flipped_model_is_refused_by_its_scores(
    gate: Gate, champion: Bundle, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No weights of a convolution mirror a picture: this one's code does."""
    candidate, build = make(), Bundle.build

    def flipped(bundle: Bundle, device="cpu"):
        network = build(bundle, device)
        return colours.Flipped(network) if bundle.folder == candidate.folder else network

    monkeypatch.setattr(Bundle, "build", flipped)
    report = gate.judge(candidate, champion)
    assert {"quality", "grid_shift"} <= set(report.refused_by)


def test_a_seam_bug_is_refused_by_the_shift_of_its_outputs(gate: Gate, champion: Bundle, make) -> None:
    report = gate.judge(make(colours.break_seams), champion)
    assert "grid_shift" in report.refused_by and "more at tile borders" in says(report, "grid_shift")
    assert "identity" not in report.refused_by  # its grid is sound
    alone = gate.judge(make(colours.break_seams))  # the first of its name
    assert "grid_shift" in alone.refused_by and "allowed +20.0 points" in says(alone, "grid_shift")


@pytest.mark.slow
def test_a_grid_without_overlap_is_refused_by_the_identity(gate: Gate, champion: Bundle, make) -> None:
    report = gate.judge(make(tile_overlap=0), champion)
    assert "identity" in report.refused_by and "objects became" in says(report, "identity")


def test_a_scale_bug_is_refused_by_its_scores(gate: Gate, champion: Bundle, make) -> None:
    candidate = make()
    planes = candidate.adapter.channels
    for index in range(3):
        planes = planes.with_channel(index, scale=255.0 * 255.0)  # divided by 255 twice
    report = gate.judge(replace(candidate, adapter=candidate.adapter.with_channels(planes)), champion)
    assert "quality" in report.refused_by


def test_a_slower_model_is_refused_by_the_budget(gate: Gate, champion: Bundle, make) -> None:
    report = gate.judge(make(tile_overlap=44), champion)
    assert report.refused_by == ("budget",) and "slower: " in says(report, "budget"), report.refusal


def test_a_fatter_model_is_refused_by_the_budget(frozen: FrozenData, champion: Bundle, make, tmp_path: Path) -> None:
    """Larger tiles, the same answers. Both are run over a scene that is large enough to show it."""
    wide, _ = colours.scene(tmp_path, "wide", (320, 320), 3)
    gate = Gate(frozen, Policy(memory_slack_mb=16), [wide])
    report = gate.judge(make(tile=320), champion)
    assert report.refused_by == ("budget",) and "fatter: peak" in says(report, "budget"), report.refusal


def test_a_nan_in_the_head_is_refused_at_once(gate: Gate, champion: Bundle, make) -> None:
    report = gate.judge(make(colours.make_nan), champion)
    assert report.refused_by == ("finite",) and "segmentation_head" in says(report, "finite")
    assert not report.complete and not report.passed and len(report.verdicts) == 3


@pytest.mark.slow
def test_a_nan_that_comes_of_real_pixels_is_refused(gate: Gate, champion: Bundle, make) -> None:
    def overflow(model: torch.nn.Module) -> None:
        model.get_submodule("network.encoder.model.conv1")[1].weight[:2] = 3e38
        colours.head(model).weight[:2, :2, 1, 1] = 3e38

    report = gate.judge(make(overflow), champion)
    assert report.refused_by == ("finite",) and "NaN or infinite" in says(report, "finite")


def test_stale_data_is_refused(gate: Gate, champion: Bundle, make) -> None:
    named = gate.judge(make(), champion, Expected(named="0123abcd"))
    assert named.refused_by == ("data",) and "the evaluation was on data 0123abcd" in says(named, "data")
    contents = {name: "0" * 64 if "north" in name else digest for name, digest in gate.data.contents.items()}
    frozen = gate.judge(make(), champion, Expected(frozen="0" * 64, contents=contents))
    assert frozen.refused_by == ("data",)
    assert "north/north.tif has other pixels, labels or windows" in says(frozen, "data")
    assert "south" not in says(frozen, "data")


def test_a_candidate_that_learned_the_data_is_refused(gate: Gate, champion: Bundle, make) -> None:
    part = gate.data.parts[0]
    places = [
        {"role": "train", "sha256": part.sha256, "window": [[100, 400], [150, 400]]},
        {"role": "test", "sha256": part.sha256, "window": [[0, 160], [0, 160]]},
        {"role": "train", "sha256": "other", "window": [[0, 160], [0, 160]]},
    ]
    report = gate.judge(replace(make(), provenance={"places": places}), champion)
    assert report.refused_by == ("data",) and "on 600 of the pixels" in says(report, "data")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("pool", "brick")}, "classes are pool (thing), brick (thing); the champion's brick"),
        ({"classes": ("brick",)}, "classes are brick (thing)"),
        ({"overlap": "free"}, "overlap is free, the champion's exclusive"),
        ({"resolution": 2.0}, "resolution is 2.0, the champion's the data’s own"),
    ],
)
def test_incompatible_signatures_are_refused(gate: Gate, champion: Bundle, make, settings, message) -> None:
    report = gate.judge(make(**settings), champion)
    assert report.refused_by == ("signature",) and message in says(report, "signature")


def test_channels_that_mean_another_band_are_refused(gate: Gate, champion: Bundle, make) -> None:
    candidate = make()
    planes = candidate.adapter.channels.with_channel(0, find=(3,)).with_channel(2, find=(1,))
    report = gate.judge(replace(candidate, adapter=candidate.adapter.with_channels(planes)), champion)
    assert report.refused_by == ("signature",) and "channel red is another band" in says(report, "signature")
    more = candidate.adapter.channels.with_channel(1, name="infrared")
    report = gate.judge(replace(candidate, adapter=candidate.adapter.with_channels(more)), champion)
    assert report.refused_by == ("signature",) and "asks for infrared" in says(report, "signature")


def test_a_first_model_must_beat_what_needs_no_network(gate: Gate, make) -> None:
    good = gate.judge(make())
    assert good.passed, good.refusal
    assert "baseline" in [verdict.rule for verdict in good.verdicts]
    bad = gate.judge(make(colours.drop_class))
    assert bad.refused_by == ("baseline",) and "it must be above" in says(bad, "baseline")


def test_a_first_model_that_finds_the_ground_and_no_objects_is_refused(
    gate: Gate, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class map is perfect; all fields of a class are one object to it, and the threshold's regions are better."""
    real = Artifact.__call__

    def merged(self: Artifact, source) -> Outputs:
        found = real(self, source)
        return replace(found, objects=found.objects.union(found.objects.labels))

    monkeypatch.setattr(Artifact, "__call__", merged)
    report = gate.judge(make())
    assert "baseline" in report.refused_by
    told = says(report, "baseline")
    assert told.startswith("foreground IoU 1.000") and "PQ of objects 0.000, the best trivial answer" in told
    assert "(threshold's regions)" in told and told.endswith("it must be above")
