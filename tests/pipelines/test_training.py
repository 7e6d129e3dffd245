"""The loop's mechanics, on a network of three layers; the real models go through it at the end."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adapters.errors import InputError
from maskformer.annealing import MaskAnnealing, masking_probability
from maskformer.config import ModelConfig
from maskformer.losses import build_criterion
from maskformer.model import build_model
from maskformer.targets import Target
from pipelines import checkpoints
from pipelines.config import TrainOptions
from pipelines.interruption import Interrupted
from pipelines.loading import batches
from pipelines.schedules import is_over, progress_of, warmup_poly
from pipelines.training import NonFiniteLoss, fit

REPOSITORY = Path(__file__).resolve().parents[2]


class Tiny(nn.Module):
    """Batch statistics and dropout: what a careless resume gets wrong."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(channels, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


class TinyCriterion(nn.Module):
    def forward(self, logits: torch.Tensor, targets: list[Target]) -> dict[str, torch.Tensor]:
        wanted = torch.stack([target.masks.any(0) for target in targets]).long()
        wanted[~torch.stack([target.valid for target in targets])] = -100
        loss = nn.functional.cross_entropy(logits.float(), wanted, ignore_index=-100)
        return {"class": loss, "class.0": 2 * loss, "total": 3 * loss}


class Blobs:
    """Bright pixels are the object. A sample depends on its index alone."""

    def __init__(self, name: str = "blobs") -> None:
        self.name = name

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        image = np.random.default_rng([7, index]).normal(size=(2, 16, 16)).astype(np.float32)
        valid = np.ones((16, 16), bool)
        valid[-3:] = False
        masks = torch.from_numpy(image[:1] > 0.5)
        return torch.from_numpy(image), Target.from_masks(
            torch.zeros(1, dtype=torch.int64), masks, torch.from_numpy(valid)
        )

    def fingerprint(self) -> str:
        return checkpoints.sha256_of(self.name)


def tiny(seed: int = 0, channels: int = 8) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(channels)


def options(**changes: object) -> TrainOptions:
    length = {} if "minutes" in changes else {"steps": 8}
    given = {**length, "batch": 2, "crop": 32, "precision": "fp32", "learning_rate": 1e-2, "workers": 0, "log_every": 1}
    return TrainOptions(**{**given, **changes})


def train(folder: Path, model: nn.Module | None = None, **keywords: object):
    """fit() of the tiny network; keywords that are no option of fit() are TrainOptions."""
    own = {"on_progress", "resume", "validate", "validations", "best_by", "dataset", "criterion"}
    extra = {name: value for name, value in keywords.items() if name in own}
    settings = options(**{name: value for name, value in keywords.items() if name not in own})
    model = model if model is not None else tiny()
    result = fit(
        model,
        extra.pop("criterion", TinyCriterion()),
        extra.pop("dataset", Blobs()),
        settings,
        folder,
        extra.pop("on_progress", None),
        **extra,
    )
    return model, result


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


def stop_at(step: int, number: int = signal.SIGTERM):
    def on_progress(row: dict[str, float]) -> None:
        if row["step"] == step and "total" in row:  # a validation reports a row of the same step
            os.kill(os.getpid(), number)

    return on_progress


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_learns_and_reports(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    model, result = train(tmp_path, steps=60, log_every=5, learning_rate=5e-2, on_progress=rows.append)
    assert result.steps == 60 and result.history == rows and len(rows) == 12
    assert rows[-1]["total"] < 0.6 * rows[0]["total"]
    for row in rows:
        assert row["total"] == pytest.approx(3 * row["class"], rel=1e-5)
        assert row["class.0"] == pytest.approx(2 * row["class"], rel=1e-5)
    assert [row["step"] for row in rows] == list(range(5, 61, 5))
    assert not model.training
    assert json.loads(json.dumps(rows)) == rows  # what a tracking server and the report take


@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "bf16"}, {"accumulate": 2, "log_every": 3}, {"ema": None, "clip": None}],
    ids=["plain", "bf16", "accumulate", "bare"],
)
def test_resumed_run_ends_at_the_same_weights(tmp_path: Path, settings: dict) -> None:
    straight, whole = train(tmp_path / "straight", **settings)
    stop = stop_at(3 if "log_every" in settings else 4)
    with pytest.raises(Interrupted, match="resume"):
        train(tmp_path / "parts", on_progress=stop, **settings)
    # A fresh process would have other initial weights and, here, another number of workers.
    resumed, result = train(tmp_path / "parts", tiny(seed=99), resume=True, workers=1, **settings)
    assert_same_weights(straight, resumed)
    assert without_time(result.history) == without_time(whole.history)
    # Not for want of randomness: another seed gives other weights.
    other, _ = train(tmp_path / "other", **{**settings, "seed": 5})
    assert not torch.equal(straight.head[1].weight, other.head[1].weight)


def test_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """kill -9 while steps and checkpoints go on; no worker survives its parent."""
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(REPOSITORY)!r})
        import torch; torch.set_num_threads(1)
        from pathlib import Path
        from tests.pipelines.test_training import train
        def slow(row):
            print(int(row["step"]), flush=True); time.sleep(0.05)
        train(Path({str(tmp_path / "parts")!r}), steps=30, workers=1, checkpoint_minutes=1e-9, on_progress=slow)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 7:
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    process.stdout.close()
    checkpoint = checkpoints.load(tmp_path / "parts" / checkpoints.NAME)
    assert 5 <= checkpoint["position"]["step"] <= 8
    straight, _ = train(tmp_path / "straight", steps=30)
    resumed, _ = train(tmp_path / "parts", tiny(seed=3), steps=30, resume=True)
    assert_same_weights(straight, resumed)
    assert workers and not psutil.wait_procs(workers, timeout=15)[1]


class Pair:
    """Blobs of two channels and 64 px, as the real models want them."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        image = torch.from_numpy(np.random.default_rng([3, index]).normal(size=(2, 64, 64)).astype(np.float32))
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        masks[0, 8:40, 8:40] = masks[1, 24:60, 24:60] = True  # they overlap
        image[0] += 3 * masks[0]
        image[1] += 3 * masks[1]
        return image, Target.from_masks(torch.tensor([0, 1]), masks, torch.ones(64, 64, dtype=torch.bool))

    def fingerprint(self) -> str:
        return "pair"


def real_model(architecture: str, seed: int) -> tuple[nn.Module, nn.Module]:
    small = {"in_channels": 2, "num_classes": 2}
    if architecture == "maskformer":
        small |= {"num_queries": 8, "pixel_dim": 32, "mask_dim": 16, "hidden_dim": 32, "num_heads": 2}
        small |= {"decoder_layers": 2, "feedforward_dim": 32}
        config = ModelConfig.from_preset("mfenet-efficientnet-lite0", **small)
    else:
        config = ModelConfig.from_preset("unet-efficientnet-lite0", **small)
    torch.manual_seed(seed)
    return build_model(config), build_criterion(config)


@pytest.mark.parametrize("architecture", ["maskformer", "unet"])
def test_real_models_learn_and_resume(tmp_path: Path, architecture: str) -> None:
    """The mask model and the per-pixel baseline, through the same code, to the same bits."""

    def run(folder: str, seed: int, **keywords: object) -> tuple[nn.Module, list[dict[str, float]]]:
        model, criterion = real_model(architecture, seed)
        settings = {"steps": 6, "learning_rate": 1e-3, "dataset": Pair(), "criterion": criterion, **keywords}
        return model, train(tmp_path / folder, model, **settings)[1].history

    straight, rows = run("straight", 0)
    assert rows[-1]["total"] < rows[0]["total"]
    with pytest.raises(Interrupted):
        run("parts", 0, on_progress=stop_at(3))
    resumed, again = run("parts", 1, resume=True)
    assert_same_weights(straight, resumed)
    assert without_time(again) == without_time(rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    seen: list[psutil.Process] = []
    others = set(psutil.Process().children(recursive=True))  # of other tests

    def to_everyone(row: dict[str, float]) -> None:
        if row["step"] == 2:
            seen.extend(set(psutil.Process().children(recursive=True)) - others)
            for process in [*seen, psutil.Process()]:
                process.send_signal(number)

    with pytest.raises(Interrupted) as caught:
        train(tmp_path, steps=1000, workers=2, on_progress=to_everyone)
    assert isinstance(caught.value, KeyboardInterrupt)  # so that the command line answers 130
    step = checkpoints.load(tmp_path / checkpoints.NAME)["position"]["step"]
    assert 2 <= step <= 3
    assert {one: signal.getsignal(one) for one in handlers} == handlers
    alive = [p for p in psutil.wait_procs(seen, timeout=10)[1] if p.status() != psutil.STATUS_ZOMBIE]
    assert len(seen) >= 2 and not alive


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def twice(row: dict[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path, on_progress=twice)
    assert not isinstance(caught.value, Interrupted)


def test_workers_end_with_the_run_and_with_its_failure(tmp_path: Path) -> None:
    train(tmp_path / "good", workers=2)
    with pytest.raises(NonFiniteLoss):
        train(tmp_path / "bad", workers=2, criterion=Broken())
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


class Broken(TinyCriterion):
    calls = 0

    def forward(self, logits: torch.Tensor, targets: list[Target]) -> dict[str, torch.Tensor]:
        losses = super().forward(logits, targets)
        self.calls += 1
        if self.calls == 3:
            losses["class.0"] = losses["class.0"] * math.nan
            losses["total"] = losses["total"] * math.nan
        return losses


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"step 3: class\.0 is nan, total is nan; no checkpoint was written yet"):
        train(tmp_path, criterion=Broken())
    with pytest.raises(NonFiniteLoss, match=r"checkpoint .* is sound"):
        train(tmp_path, criterion=Broken(), checkpoint_minutes=1e-9)
    state = checkpoints.load(tmp_path / checkpoints.NAME)
    assert state["position"]["step"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


def test_minutes_end_in_time_with_the_schedule_done(tmp_path: Path) -> None:
    began = time.monotonic()
    steps: list[float] = []

    class Slow(TinyCriterion):
        def forward(self, logits: torch.Tensor, targets: list[Target]) -> dict[str, torch.Tensor]:
            steps.append(time.monotonic())
            time.sleep(0.05)
            return super().forward(logits, targets)

    _, result = train(tmp_path, minutes=1.5 / 60, criterion=Slow())
    longest = max(np.diff(steps))
    assert steps[-1] - began <= 1.5 + longest
    assert result.steps > 5 and 1.5 - 3 * longest - 0.1 < result.seconds < 1.5 + longest
    rates = [row["learning_rate"] for row in result.history]
    assert rates[-1] < 0.25 * max(rates)
    # A finished run has nothing left to do.
    _, again = train(tmp_path, minutes=1.5 / 60, resume=True)
    assert again.steps == result.steps


def test_resume_refuses_what_is_not_the_same_run(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    with pytest.raises(InputError, match="already"):
        train(tmp_path, steps=2)
    with pytest.raises(InputError, match="another model"):
        train(tmp_path, tiny(channels=4), steps=2, resume=True)
    with pytest.raises(InputError, match="another data"):
        train(tmp_path, steps=2, resume=True, dataset=Blobs("others"))
    with pytest.raises(InputError, match=r"train\.batch was 2, now 4"):
        train(tmp_path, steps=2, resume=True, batch=4)
    with pytest.raises(InputError, match="no checkpoint"):
        train(tmp_path / "empty", steps=2, resume=True)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    train(tmp_path, steps=3)
    _, result = train(tmp_path, steps=5, resume=True)
    assert [row["step"] for row in result.history] == [1, 2, 3, 4, 5]


class Annealed(Tiny):
    """Hides a share of its channels by lot: the share follows the progress, the lot the generator."""

    def __init__(self) -> None:
        super().__init__()
        self.annealing = MaskAnnealing(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.backbone(x)
        for block in range(2):
            if self.annealing.is_active(block):
                hidden = torch.zeros(*features.shape[:2], 1, dtype=torch.bool)
                features = features * self.annealing.spare(block, hidden)[..., None]
        return self.head(features)


def test_annealing_follows_the_progress_also_over_a_resume_and_in_the_average(tmp_path: Path) -> None:
    def annealed(seed: int) -> Annealed:
        torch.manual_seed(seed)
        return Annealed()

    seen = []

    def look(model: nn.Module) -> dict[str, float]:
        seen.append((model.annealing.probability.tolist(), model.annealing.mostly))
        return {"score": 1.0}

    straight, _ = train(tmp_path / "straight", annealed(0), steps=12, validate=look, validations=4)
    # Validations follow steps 3, 6 and 9 of 12 and the end, so the model stands at 2/12, 5/12, 8/12 and 11/12.
    assert [values for values, _ in seen] == [
        pytest.approx([masking_probability(block, 2, done / 12) for block in range(2)]) for done in (2, 5, 8, 11)
    ]
    assert [mostly for _, mostly in seen] == [(True, True), (False, True), (False, True), (False, False)]
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", annealed(0), steps=12, on_progress=stop_at(7))
    resumed, _ = train(tmp_path / "parts", annealed(99), steps=12, resume=True)
    assert_same_weights(straight, resumed)
    assert resumed.annealing.probability.tolist() == [0.0, 0.0] and not any(resumed.annealing.sometimes)


def test_averaged_weights_are_what_is_left(tmp_path: Path) -> None:
    model, _ = train(tmp_path / "on", ema=0.9)
    state = checkpoints.load(tmp_path / "on" / checkpoints.NAME)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["average"][name])
    assert not torch.equal(state["model"]["head.1.weight"], state["average"]["head.1.weight"])
    plain, _ = train(tmp_path / "off", ema=None)
    state = checkpoints.load(tmp_path / "off" / checkpoints.NAME)
    assert state["average"] is None
    assert torch.equal(plain.head[1].weight, state["model"]["head.1.weight"])


@pytest.mark.parametrize("broken_at", [None, 6])
def test_the_best_validation_is_kept_also_over_a_resume(tmp_path: Path, broken_at: int | None) -> None:
    seen: list[tuple[float, torch.Tensor]] = []

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        scores = [0.2, 0.9, 0.5, 0.4]
        seen.append((scores[len(seen)], model.head[1].weight.clone()))
        return {"iou": seen[-1][0]}

    keywords = {"validate": validate, "validations": 4, "best_by": "iou"}
    if broken_at:
        with pytest.raises(Interrupted):
            train(tmp_path, on_progress=stop_at(broken_at), **keywords)
    model, result = train(tmp_path, resume=bool(broken_at), **keywords)
    assert [row["step"] for row in result.history if "validation_iou" in row] == [2, 4, 6, 8]
    assert result.best == {"iou": 0.9}
    assert torch.equal(model.head[1].weight, seen[1][1])


def test_the_model_comes_back_as_it_went_in(tmp_path: Path) -> None:
    """No autocast wrapper stays on it, and the next run may have another precision."""
    model, _ = train(tmp_path / "one", steps=1, precision="bf16")
    assert "forward" not in vars(model)
    again = deepcopy(model)
    x = torch.randn(1, 2, 16, 16)
    assert torch.equal(model(x), again(x))
    train(tmp_path / "two", model, steps=1, precision="fp32")


def test_works_outside_the_main_thread(tmp_path: Path) -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path, workers=1)[1].steps))
    thread.start()
    thread.join(60)
    assert done == [8]


def test_recomputed_activations_give_the_same_weights(tmp_path: Path) -> None:
    models = []
    # Frozen batch norms, as published for ResNets: others would count a batch twice in their running statistics.
    small = {"backbone": "resnet10t", "num_classes": 2, "in_channels": 2, "num_queries": 8, "feedforward_dim": 64}
    config = ModelConfig.from_preset("maskformer-resnet50", **small, decoder_layers=2, dropout=0.1)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, criterion = build_model(config), build_criterion(config)
        settings = options(steps=2, batch=2, precision="fp32", grad_checkpointing=checkpointing)
        fit(model, criterion, Pair(), settings, tmp_path / str(checkpointing))
        models.append(model)
    assert_same_weights(*models)
    with pytest.raises(InputError, match="cannot recompute its activations"):
        train(tmp_path / "tiny", grad_checkpointing=True)


def test_a_wrong_label_is_named_before_it_leaves_the_processor(tmp_path: Path) -> None:
    class Wrong(Pair):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
            image, target = super().__getitem__(index)
            return image, target._replace(labels=torch.tensor([0, 9]))

    model, criterion = real_model("maskformer", seed=0)
    criterion.forward = lambda *_: pytest.fail("the criterion was asked")  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="label 9, but there are 2 classes"):
        fit(model, criterion, Wrong(), options(steps=1, precision="fp32"), tmp_path)


def test_half_precision_on_a_processor_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        train(tmp_path, precision="fp16")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_any_number_of_workers(workers: int) -> None:
    """Two processes of a distributed run together see every index once, in step."""
    wanted = [Blobs()[index] for index in range(12)]
    for rank in (0, 1):
        stream = batches(Blobs(), 2, workers, start=1, rank=rank, world=2)
        for k in (1, 2):
            images, targets = next(stream)
            for place in range(2):
                image, target = wanted[(2 * k + rank) * 2 + place]
                assert torch.equal(images[place], image)
                assert all(torch.equal(*pair) for pair in zip(targets[place], target))
                assert [tensor.dtype for tensor in targets[place]] == [tensor.dtype for tensor in target]
        stream.close()


@given(st.floats(0, 1), st.floats(0, 0.9), st.floats(0.5, 3))
def test_schedule_stays_between_nothing_and_all(progress: float, warmup: float, power: float) -> None:
    factor = warmup_poly(progress, warmup, power)
    assert 0 <= factor <= 1
    assert factor <= (1 - progress) ** power + 1e-12


def test_schedule_rises_then_falls_to_zero() -> None:
    factors = [warmup_poly(step / 100, 0.1, 0.9) for step in range(101)]
    assert 0 < factors[0] < 0.01 and factors[100] == 0
    assert np.argmax(factors) == 10 and factors[10] == pytest.approx(0.9**0.9)
    assert all(np.diff(factors[:11]) > 0) and all(np.diff(factors[10:]) < 0)


def test_time_and_steps_obey_one_rule() -> None:
    assert progress_of(30, 999, 120, None) == progress_of(999, 30, None, 2) == 0.25
    assert is_over(120, 0, 120, None) and not is_over(119, 0, 120, None)
    assert not is_over(0, 0, None, 1)
    assert not is_over(10, 54, None, 1)  # 5.4 s a step: 59.4 s is within the minute
    assert is_over(10, 55, None, 1)  # 60.5 s would be over it
