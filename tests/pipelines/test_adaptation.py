"""Adaptation without labels: each strategy against what it must do, and that no label is ever opened."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from scipy.ndimage import gaussian_filter

from adapters.errors import InputError
from maskformer.masks import MaskSet
from maskformer.targets import Target as Labels
from pipelines import annotations, cli
from pipelines.adaptation import adapt as adapting
from pipelines.adaptation import norm_statistics
from pipelines.adaptation.adapt import Request, adapt, subject_of
from pipelines.adaptation.evidence import Trust, agreement, class_thresholds, pseudo_labels, teachable
from pipelines.adaptation.mixing import paste
from pipelines.adaptation.norm_statistics import batch_norms, measure, moments, restate
from pipelines.adaptation.resolution import resolution
from pipelines.adaptation.self_training import self_training
from pipelines.adaptation.style import fourier, histogram
from pipelines.adaptation.target import Effort, Subject, Target
from pipelines.adaptation.verdict import Measured, Score, Verdict, compare, measured
from pipelines.bundle import load_bundle
from pipelines.config import save_config
from pipelines.drift.features import drift
from pipelines.experiments import evaluate
from pipelines.grid import Grid
from tests.models import adapter, squares_config, tiny_bundle

QUICK = Effort(crops=8, steps=2, rounds=1, batch=2)


@pytest.fixture
def scene(make_geotiff) -> Path:
    """Mean 100 and spread 20, where the adapter below knows 0 and 1."""
    values = np.random.default_rng(0).normal(100, 20, (1, 96, 128)).astype(np.float32)
    return make_geotiff(values, name="target.tif")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "model", adapter(tile=64, tile_overlap=16), thresholds={"score": 0.4})


def test_statistics_of_bands_and_norms_are_the_targets(model: Path, scene: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    made = adapt(model, [str(scene)], tmp_path / "out", Request(effort=QUICK))
    held = load_bundle(made.bundle)
    channel = held.adapter.channels[0]
    assert channel.offset == pytest.approx(100, abs=1) and channel.scale == pytest.approx(20, rel=0.03)
    old, new = load_bundle(model).build().state_dict(), held.build().state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)
    assert held.thresholds == {"score": 0.4} and made.better is None
    assert held.provenance["adaptation"]["from"] == load_bundle(model).digest
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before, "the source model stays"


def test_restated_norms_know_the_data_and_answer_as_before(model: Path) -> None:
    network = load_bundle(model).build()
    images = [torch.randn(1, 64, 64) * 3 + 1 for _ in range(4)]
    new = torch.randn(2, 1, 64, 64) - 2
    before = network(new)
    assert restate(network, images) == len(batch_norms(network))
    after = network(new)
    for old, now in zip(before[:2], after[:2]):
        assert torch.allclose(old, now, atol=1e-4)
    for norm, (mean, variance) in zip(batch_norms(network), moments(network, batch_norms(network), images)):
        assert torch.allclose(norm.running_mean.double(), mean, atol=1e-3)
        assert torch.allclose(norm.running_var.double(), variance, rtol=1e-2, atol=1e-4)


def test_norms_frozen_at_other_data_are_left_alone(model: Path, scene: Path) -> None:
    bundle = load_bundle(model)
    subject = replace(subject_of(bundle), norms_known=False)
    left = norm_statistics.norm_statistics(subject, Target((str(scene),), QUICK))
    assert "frozen" in left.notes["norm_statistics"]["left_out"]
    old, new = bundle.build().state_dict(), left.model.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_the_resolution_is_found_by_its_features(model: Path, make_geotiff) -> None:
    random = np.random.default_rng(0)
    fine = gaussian_filter(random.normal(0, 1, (256, 256)), 2).astype(np.float32)[None]
    fine /= fine.std()
    place = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
    own = make_geotiff(fine, name="fine.tif", crs="EPSG:32617", transform=place)
    coarse = fine.reshape(1, 128, 2, 128, 2).mean((2, 4))
    far = make_geotiff(coarse, name="coarse.tif", crs="EPSG:32617", transform=place @ Affine.scale(2))
    subject = subject_of(load_bundle(model))
    restate(subject.model, Target((str(own),), QUICK).crops(subject.adapter))
    assert resolution(subject, Target((str(own),), QUICK)).adapter == subject.adapter
    found = resolution(subject, Target((str(far),), QUICK))
    assert found.adapter.resolution == pytest.approx(0.5, rel=0.01), found.notes
    declared = replace(subject, adapter=replace(subject.adapter, resolution=0.5))
    assert "declares" in resolution(declared, Target((str(far),), QUICK)).notes["resolution"]["left_out"]


def test_norm_statistics_are_the_mean_of_the_crops_and_the_prior() -> None:
    norm = torch.nn.BatchNorm2d(2)
    images = [torch.randn(2, 8, 8) * 3 + 5 for _ in range(16)]
    measure(norm, batch_norms(norm), images, 0.5)
    seen = torch.stack(images)
    assert norm.running_mean == pytest.approx(0.5 * seen.mean((0, 2, 3)).numpy(), rel=1e-5)
    assert norm.running_var.numpy() == pytest.approx(0.5 + 0.5 * 9, rel=0.1)
    assert norm.momentum == 0.1 and not norm.training


@pytest.fixture
def guarded(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run config of the target whose labels are no labels at all, where reading any is an error."""
    labels = scene.with_suffix(".gpkg")
    labels.write_bytes(b"no GeoPackage: reading it would be an error")
    config = {"adapter": {}, "data": [{"source": scene.name, "labels": labels.name}], "train": {"steps": 1}}
    (tmp_path / "target.yaml").write_text(json.dumps(config))

    def never(*_, **__):
        raise AssertionError("labels were read")

    monkeypatch.setattr(annotations, "read_annotations", never)
    monkeypatch.setattr("pipelines.labelled.read_annotations", never)
    return tmp_path / "target.yaml"


@pytest.mark.parametrize("strategies", [(), ("self_training",), ("test_time",)], ids=lambda s: "+".join(s) or "usual")
def test_no_label_is_opened(
    model: Path, guarded: Path, tmp_path: Path, strategies: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # an untrained network is sure of nothing: for once everything it sees is taught
    monkeypatch.setattr("pipelines.adaptation.self_training.teachable", lambda seen, *_: np.ones(len(seen), bool))
    opened: list[str] = []
    watching = True  # a hook stays for good, so it is told when to stop

    def watch(event: str, given: tuple) -> None:
        if watching and event == "open":
            opened.append(str(given[0]))

    sys.addaudithook(watch)
    words = ["adapt", str(model), str(guarded), "--out", str(tmp_path / "out"), "--steps", "1"]
    code = cli.run([*words, *(word for name in strategies for word in ("--strategy", name))])
    watching = False
    assert code == 0 and (tmp_path / "out" / "bundle.json").exists()
    assert any("target.yaml" in path for path in opened) and not any(".gpkg" in path for path in opened)


def by_unit(values: list[float]) -> Score:
    """A score that is the plain mean over units."""
    return Score(np.array(values)[:, None], np.ones((len(values), 1)))


def test_better_is_what_its_interval_shows() -> None:
    random = np.random.default_rng(0)
    usual = list(0.5 + random.normal(0, 0.02, 20))
    source = Measured({}, {"f1_50": by_unit(usual), "miou": by_unit(usual)})

    def verdict(objects: np.ndarray, pixels: float = 0.0) -> Verdict:
        scores = {"f1_50": by_unit(list(usual + objects)), "miou": by_unit([value + pixels for value in usual])}
        return compare(source, Measured({}, scores))

    noise = random.normal(0, 0.1, 20)
    clear, luck, worse = verdict(noise * 0.1 + 0.1), verdict(noise - noise.mean() + 0.01), verdict(noise * 0.1 - 0.1)
    assert clear.better and clear.metric == "f1_50" and clear.differences["f1_50"].low > 0
    assert clear.differences["f1_50"].mean == pytest.approx(0.1, abs=0.02)
    assert luck.better is False and luck.differences["f1_50"].mean > 0 > luck.differences["f1_50"].low
    assert worse.better is False
    assert verdict(noise * 0.1 + 0.1, pixels=-0.05).better is False, "better in objects, but worse in pixels"
    few = Measured({}, {"f1_50": by_unit([0.1] * 4)}), Measured({}, {"f1_50": by_unit([0.9] * 4)})
    assert compare(*few).better is None, "four places show nothing"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        old, new = random.normal(0.5, 0.1, 30), random.normal(0.55, 0.1, 30)
        found = compare(Measured({}, {"dice": by_unit(old)}), Measured({}, {"dice": by_unit(new)}), trial)
        covered += found.differences["dice"].low <= 0.05 <= found.differences["dice"].high
    assert 85 <= covered <= 100


def test_a_worse_model_is_not_called_better(model: Path, make_geotiff, tmp_path: Path, monkeypatch, capsys) -> None:
    config = squares_config(make_geotiff, tmp_path)
    found = iter([Measured({"f1_50": 0.5}, {"f1_50": by_unit([0.5] * 9)}), Measured({}, {"f1_50": by_unit([0.4] * 9)})])
    monkeypatch.setattr(adapting, "measured", lambda *_: next(found))
    scene = str(make_geotiff(np.zeros((1, 64, 64), np.float32) + np.eye(64, dtype=np.float32), name="t.tif"))
    made = adapt(model, [scene], tmp_path / "out", Request(effort=QUICK, scored_on=config))
    assert made.better is False and made.bundle is None and not (tmp_path / "out").exists()
    assert made.scores["source only"]["f1_50"] == 0.5


def test_the_command_says_that_a_model_is_not_better(
    model: Path, make_geotiff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    save_config(squares_config(make_geotiff, tmp_path), tmp_path / "labelled.yaml")
    worse = {"f1_50": by_unit([0.4] * 9)}
    found = iter([Measured({"f1_50": 0.5}, {"f1_50": by_unit([0.5] * 9)}), Measured({"f1_50": 0.4}, worse)])
    monkeypatch.setattr(adapting, "measured", lambda *_: next(found))
    scene = str(make_geotiff(np.zeros((1, 64, 64), np.float32) + np.eye(64, dtype=np.float32), name="t.tif"))
    words = ["adapt", str(model), scene, "--out", str(tmp_path / "out"), "--strategy", "input_statistics"]
    assert cli.run([*words, "--score-on", str(tmp_path / "labelled.yaml")]) == 4
    said = capsys.readouterr()
    assert "source only  f1_50 0.500" in said.err and "adapted      f1_50 0.400" in said.err and not said.out
    assert "not shown to be by f1_50; nothing is written" in said.err and not (tmp_path / "out").exists()


def test_scores_stand_side_by_side(make_geotiff, tmp_path: Path) -> None:
    config = squares_config(make_geotiff, tmp_path)
    bands = adapter(channels=("red", "green", "blue"), tile=64, tile_overlap=16)
    model = tiny_bundle(tmp_path / "m", bands)
    request = Request(effort=QUICK, scored_on=config, upper_bound=str(model))
    made = adapt(model, [config.data[0].source], tmp_path / "out", request)
    assert list(made.scores) == ["source only", "adapted", "upper bound"]
    assert made.scores["source only"] == made.scores["upper bound"]
    evaluated = evaluate(model, config, tmp_path / "scores")
    assert {key: evaluated[key] for key in ("f1_50", "miou", "pq")} == {
        key: made.scores["source only"][key] for key in ("f1_50", "miou", "pq")
    }


def test_counts_by_place_add_up_to_the_scores(make_geotiff, tmp_path: Path) -> None:
    config = squares_config(make_geotiff, tmp_path)
    bands = adapter(channels=("red", "green", "blue"), tile=64, tile_overlap=16)
    bundle = load_bundle(tiny_bundle(tmp_path / "m", bands, thresholds={"score": 0.0, "semantic": 0.3}))
    found = measured(subject_of(bundle), config)
    assert list(found.by_unit) == ["f1_50", "miou"] and len(found.by_unit["miou"].above) == 6 * 4
    for name, score in found.by_unit.items():
        assert score.value == pytest.approx(found.scores[name], abs=1e-6)


def box(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((64, 112), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_what_tiles_disagree_on_is_not_taught() -> None:
    both, quarrel = box(10, 50, 12), box(40, 50, 12)
    objects = MaskSet.from_dense(np.stack([both, quarrel]), [0, 0], [0.9, 0.9])
    left, right = Grid((64, 112), 64, 16).tiles
    seen = [(left, objects.crop(left.window)), (right, objects[:1].crop(right.window))]
    agreed = agreement(objects, seen)
    assert agreed.tolist() == [1, 0]
    taught = teachable(objects, agreed, 1, Trust(share=1))
    lesson = pseudo_labels(objects, taught)
    assert lesson.objects == objects[:1]
    whole = (slice(0, 64), slice(0, 112))
    assert np.array_equal(lesson.read(whole).ignore, quarrel), "what is doubtful is unknown, not background"


def test_a_timid_class_has_a_threshold_of_its_own() -> None:
    masks = np.stack([box(0, 0, 4)] * 20)
    scores = [*np.linspace(0.8, 0.99, 10), *np.linspace(0.35, 0.54, 10)]
    objects = MaskSet.from_dense(masks, [0] * 10 + [1] * 10, scores)
    limits = class_thresholds(objects, 3, Trust(share=0.5, floor=0.3))
    assert limits[0] > 0.85 and 0.35 < limits[1] < 0.5 and limits[2] == 0.3
    taught = teachable(objects, np.ones(20), 3, Trust(share=0.5, floor=0.3))
    assert taught[:10].sum() == taught[10:].sum() == 5


def test_pasted_objects_cover_what_lies_below() -> None:
    def labels(mask: np.ndarray, label: int) -> Labels:
        return Labels.from_mask_set(MaskSet.from_dense(mask[None], [label]), np.ones(mask.shape, bool))

    image, guest_image = torch.zeros(1, 64, 112), torch.ones(1, 64, 112)
    own, guest = labels(box(0, 0, 20), 0), labels(box(10, 10, 20), 1)
    mixed, target = paste(image, own, guest_image, guest, torch.tensor([0]))
    assert np.array_equal(mixed[0].bool().numpy(), box(10, 10, 20))
    assert target.labels.tolist() == [0, 1]
    assert np.array_equal(target.masks[0].numpy(), box(0, 0, 20) & ~box(10, 10, 20))
    assert np.array_equal(target.masks[1].numpy(), box(10, 10, 20))


def test_self_training_learns_only_from_what_it_is_sure_of(model: Path, scene: Path) -> None:
    bundle = load_bundle(model)
    network = bundle.build()
    before = deepcopy(network.state_dict())
    subject = Subject(network, bundle.adapter, bundle.thresholds)
    target = Target((str(scene),), QUICK)
    taught = self_training(subject, target, Trust(share=1.0, floor=0.0))
    assert taught.notes["self_training"]["rounds"][0]["taught"] > 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert any(not torch.equal(before[name], value) for name, value in taught.model.state_dict().items())
    with pytest.raises(InputError, match="no object it is sure of"):
        self_training(subject, target, Trust(floor=1.1))


def test_style_takes_the_targets_colours_and_keeps_the_shapes() -> None:
    torch.manual_seed(0)
    image, look = torch.randn(2, 64, 64), 3 * torch.randn(2, 64, 64) + 7
    by_rank = histogram(image, look)
    assert torch.equal(by_rank.flatten(1).sort(1).values, look.flatten(1).sort(1).values)
    assert torch.equal(by_rank.flatten(1).argsort(1), image.flatten(1).argsort(1))
    dressed = fourier(image + 1, look)
    assert dressed.mean((1, 2)).numpy() == pytest.approx(look.mean((1, 2)).numpy(), rel=1e-4)
    assert torch.corrcoef(torch.stack([dressed[0].flatten(), image[0].flatten()]))[0, 1] > 0.99


def test_what_cannot_be_is_said(model: Path, scene: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are resolution"):
        adapt(model, [str(scene)], tmp_path / "o", Request(("magic",)))
    with pytest.raises(InputError, match="labelled source data"):
        adapt(model, [str(scene)], tmp_path / "o", Request(("style",)))
    with pytest.raises(InputError, match="source model itself"):
        adapt(model, [str(scene)], model)
    with pytest.raises(InputError, match="one scene at a time"):
        adapt(model, [str(scene)] * 2, tmp_path / "o", Request(("test_time",)))


def test_drift_grows_with_the_shift_and_is_drawn(make_geotiff, tmp_path: Path, capsys) -> None:
    random = np.random.default_rng(0)
    model = tiny_bundle(tmp_path / "m", adapter(tile=64, tile_overlap=16))
    bundle = load_bundle(model)
    network = bundle.build()
    usual = random.normal(0, 1, (1, 128, 128)).astype(np.float32)
    seen = [torch.from_numpy(usual[:, a : a + 64, b : b + 64]) for a in (0, 32, 64) for b in (0, 32, 64)]
    measure(network, batch_norms(network), seen, 1.0)  # it has seen this and nothing else
    far = []
    for number, gain in enumerate((1.0, 1.5, 2.0, 3.0)):
        path = make_geotiff(usual * gain + gain - 1, name=f"g{number}.tif")
        far.append(drift(network, bundle.adapter, [str(path)], 8))
    distances = [one.distance for one in far]  # unsteadiness of an untrained network means nothing
    assert distances == sorted(distances) and distances[0] < 0.5 * distances[-1]
    assert far[0].number + 0.2 < far[-1].number <= 1
    out = tmp_path / "drift"
    assert cli.run(["drift", str(model), str(path), "--out", str(out), "--crops", "4"]) == 0
    assert float(capsys.readouterr().out) > 0
    assert (out / "drift.svg").read_text().startswith("<svg") and "confidence" in (out / "drift.json").read_text()


def test_style_learns_from_the_dressed_source(make_geotiff, tmp_path: Path) -> None:
    source = squares_config(make_geotiff, tmp_path)
    bands = adapter(channels=("red", "green", "blue"), tile=64, tile_overlap=16)
    model = tiny_bundle(tmp_path / "m", bands)
    dark = np.random.default_rng(1).normal(20, 5, (3, 80, 80)).astype(np.float32)
    scene = make_geotiff(dark, name="dark.tif")
    made = adapt(model, [str(scene)], tmp_path / "out", Request(("style",), QUICK, source))
    old, new = load_bundle(model).build().state_dict(), load_bundle(made.bundle).build().state_dict()
    assert made.notes["style"] == {"steps": 2, "looks": 8}
    assert any(not torch.equal(old[name], new[name]) for name in old if name.endswith("weight"))
    assert load_bundle(made.bundle).adapter == bands
