"""Training: one loop for the mask model and the per-pixel baseline, on a laptop or under `accelerate launch`.

The run's length is a number of steps or of minutes; the schedule ends with it either way. A checkpoint holds
all the run depends on: counted in steps, a killed and resumed run ends at the weights of an unbroken one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from timm.utils import ModelEmaV3
from torch import nn

from adapters.errors import InputError
from maskformer.annealing import set_progress
from maskformer.model import freeze, param_groups
from maskformer.targets import check_labels
from pipelines import checkpoints, low_rank
from pipelines.config import TrainOptions
from pipelines.devices import choose_device, choose_precision
from pipelines.interruption import Interrupted, stop_requests
from pipelines.loading import Samples, batches
from pipelines.schedules import is_over, progress_of, warmup_poly

log = logging.getLogger(__name__)

Row = dict[str, float]
# May differ between a run and its resumption: they move no weight, or (the length) are meant to be extended.
FREE_OPTIONS = {"minutes", "steps", "workers", "log_every", "checkpoint_minutes", "grad_checkpointing"}
ACCELERATE_NAMES = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


class NonFiniteLoss(ArithmeticError):
    """A loss or the gradient became NaN or infinite. The weights of the last checkpoint are sound."""


@dataclass(frozen=True)
class FitResult:
    """steps and seconds over all sittings; history: rows as given to `on_progress`; checkpoint: the file."""

    steps: int
    seconds: float
    history: list[Row]
    checkpoint: Path
    best: dict[str, float] | None = None


@dataclass
class Position:
    """Where a run stands; everything but the tensors that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0
    validations: int = 0
    history: list[Row] = field(default_factory=list)
    since_row: list[Row] = field(default_factory=list)
    best: dict[str, float] | None = None


def fit(
    model: nn.Module,
    criterion: nn.Module,
    dataset: Samples,
    options: TrainOptions,
    folder: Path | str,
    on_progress: Callable[[Row], None] | None = None,
    *,
    resume: bool = False,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    validations: int = 1,
    best_by: str | None = None,
) -> FitResult:
    """Train `model` in place; on return it is in eval mode and holds the averaged weights (EMA, where on).

    criterion(model(images), targets) gives named losses with "total". Every `options.log_every` steps a row
    goes into the history and to `on_progress`: step, seconds, learning_rate, gradient_norm and the losses under
    the criterion's names (the final layer's are plain, auxiliary ones end in ".<layer>"), all but the first two
    means over the steps since the last row. `validate(model in eval mode)` is called `validations` times,
    evenly spread, the last time at the end (on top of `minutes`); its scores become a row `validation_<name>`.
    With `best_by`, the weights of the validation with the highest such score are kept, not the last ones.

    Raises InputError where `folder` holds a checkpoint and `resume` is off, or the checkpoint does not fit;
    NonFiniteLoss; Interrupted after Ctrl-C or SIGTERM, with the checkpoint written.
    """
    file = Path(folder) / checkpoints.NAME
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not resume:
        raise InputError(f"{file}: a run is here already; resume it, or choose another folder")
    if options.low_rank:
        low_rank.attach(model, options.low_rank, options.seed)
    run = _Run(model, criterion, dataset, options, file, on_progress or (lambda row: None))
    try:
        if resume:
            run.load()
        with stop_requests() as stop_requested, closing(run.stream()) as stream:
            saved = run.position.seconds
            while not run.update_clock(stop_requested()):
                run.step(stream)
                due = (run.position.validations + 1) / validations
                if validate is not None and due < 1 and run.progress() >= due:
                    run.validate(validate, best_by)
                if run.position.seconds - saved > 60 * options.checkpoint_minutes:
                    run.save()
                    saved = run.position.seconds
        run.write_row()
        run.save()
        if validate is not None and run.position.validations < validations:
            run.validate(validate, best_by)
            run.save()
        run.keep_final_weights()
    finally:
        run.release()
        if options.low_rank:
            low_rank.merge(model)
    place = run.position
    return FitResult(place.step, place.seconds, place.history, file, place.best)


class _Run:
    """The objects of one run, and the four things done with them: step, validate, save, load."""

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        dataset: Samples,
        options: TrainOptions,
        file: Path,
        on_progress: Callable[[Row], None],
    ) -> None:
        self.options, self.file, self.dataset, self.on_progress = options, file, dataset, on_progress
        self.accelerator = _accelerator(options.precision)
        self.device = self.accelerator.device
        torch.manual_seed(options.seed + self.accelerator.process_index)
        self.fingerprint = {
            "model": checkpoints.model_fingerprint(model),
            "data": dataset.fingerprint(),
            "options": options.model_dump(mode="json", exclude=FREE_OPTIONS),
        }
        # The plain module: what is averaged and saved. `self.model` is the same behind autocast and DDP.
        self.module = model.to(self.device).to(memory_format=torch.channels_last).train()
        _hold(self.module, options.freeze)
        if options.grad_checkpointing:
            _recompute_activations(self.module)
        self.criterion = criterion.to(self.device).train()
        self.num_classes: int | None = getattr(getattr(criterion, "config", None), "num_classes", None)
        self.average = ModelEmaV3(model, decay=options.ema, use_warmup=True) if options.ema else None
        groups = param_groups(
            model, options.learning_rate, options.backbone_multiplier, options.weight_decay, options.layer_decay
        )
        optimizer = torch.optim.AdamW([{**group, "initial_lr": group["lr"]} for group in groups])
        self.model, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        self.position = Position()
        self.best_weights: dict[str, torch.Tensor] | None = None
        self._began = time.monotonic()

    def stream(self) -> Generator[Any, None, None]:
        start = self.position.step * self.options.accumulate
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        return batches(self.dataset, self.options.batch, self.options.workers, start, rank, world)

    def progress(self) -> float:
        place = self.position
        return min(progress_of(place.step, place.seconds, self.options.steps, self.options.minutes), 1.0)

    def update_clock(self, stop: bool) -> bool:
        """Read the clock; True when the run is over. Raises Interrupted, after saving, on a request to stop.

        All processes must decide alike: the first one's clock counts, and a request to any of them.
        """
        seconds = time.monotonic() - self._began
        if self.accelerator.num_processes > 1:
            stop = any(gather_object([stop]))
            seconds = broadcast_object_list([seconds])[0]
        self.position.seconds = seconds
        if is_over(self.position.step, seconds, self.options.steps, self.options.minutes):
            return True
        if stop:
            self.save()
            raise Interrupted(f"stopped after step {self.position.step}; resume goes on from {self.file}")
        return False

    def step(self, stream: Iterator[Any]) -> None:
        """One optimiser step over `accumulate` batches."""
        options, place = self.options, self.position
        progress = self.progress()
        set_progress(self.module, progress)
        if self.average is not None:  # an average of schedules would be none, and it may be scored or kept any time
            set_progress(self.average.module, progress)
        rate = warmup_poly(progress, options.warmup, options.power)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        sums: dict[str, torch.Tensor] = {}
        for part in range(options.accumulate):
            images, targets = next(stream)
            images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
            if self.num_classes is not None:  # on the way to a GPU, where a wrong label would stop the process
                for target in targets:
                    check_labels(target, self.num_classes)
            targets = [target.to(self.device) for target in targets]
            # Gradients are exchanged between processes with the last batch of a step only.
            last = part == options.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self.criterion(self.model(images), targets)
                self.accelerator.backward(losses["total"] / options.accumulate)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / options.accumulate
        row = self._finite(sums)
        if options.clip is not None:
            norm = float(self.accelerator.clip_grad_norm_(self.module.parameters(), options.clip))
            # fp16 is scaled until it overflows now and then: the scaler skips such a step by itself.
            if not math.isfinite(norm) and self.accelerator.scaler is None:
                raise NonFiniteLoss(self._fault(f"the gradient norm is {norm}"))
            row["gradient_norm"] = norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        place.step += 1
        if self.average is not None:
            self.average.update(self.module, step=place.step)
        place.since_row.append(row)
        if place.step % options.log_every == 0:
            self.write_row()

    def write_row(self) -> None:
        """Append the means since the last row to the history and report them."""
        place = self.position
        if not place.since_row:
            return
        rates = [group["lr"] for group in self.optimizer.param_groups]
        names = list(place.since_row[-1])
        means = {name: fmean(row[name] for row in place.since_row) for name in names}
        place.since_row = []
        self._report({"learning_rate": max(rates), **means})

    def validate(self, validate: Callable[[nn.Module], Mapping[str, float]], best_by: str | None) -> None:
        """Score the averaged weights, and remember them if they are the best so far."""
        self.accelerator.wait_for_everyone()
        self.position.validations += 1
        if not self.accelerator.is_main_process:
            return
        candidate = self.module if self.average is None else self.average.module
        with torch.no_grad():
            scores = dict(validate(candidate.eval()))
        self.module.train()
        _hold(self.module, self.options.freeze)
        self._report({f"validation_{name}": float(score) for name, score in scores.items()})
        if best_by is None:
            return
        best = self.position.best
        if best is None or scores[best_by] > best[best_by]:
            self.position.best = scores
            self.best_weights = {name: value.cpu().clone() for name, value in candidate.state_dict().items()}

    def save(self) -> None:
        """Write the checkpoint (first process only; all must call)."""
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state()
        all_generators = gather_object([generators])
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        checkpoints.save(
            self.file,
            {
                "fingerprint": self.fingerprint,
                "position": asdict(self.position),
                "model": self.module.state_dict(),
                "average": None if self.average is None else self.average.module.state_dict(),
                "best": self.best_weights,
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "generators": all_generators,
            },
        )
        log.debug("checkpoint of step %d: %s", self.position.step, self.file)

    def load(self) -> None:
        """Go back to where the checkpoint stands. Raises InputError where it is of another run."""
        state = checkpoints.load(self.file)
        checkpoints.check_fingerprint(self.file, state["fingerprint"], self.fingerprint)
        self.module.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best_weights = state["best"]
        self.position = Position(**state["position"])
        self._began = time.monotonic() - self.position.seconds
        # With another number of processes there is no same state to return to; the first one's will do.
        generators = state["generators"][self.accelerator.process_index % len(state["generators"])]
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators and self.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"])
        log.info("resumed %s at step %d", self.file, self.position.step)

    def keep_final_weights(self) -> None:
        """Best where validations chose, else averaged, else last."""
        if self.best_weights is not None:
            self.module.load_state_dict(self.best_weights)
        elif self.average is not None:
            self.module.load_state_dict(self.average.module.state_dict())

    def release(self) -> None:
        """Give the module back as it came: no autocast wrapper, in eval mode."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(self.module).pop("forward", None)  # Accelerate leaves a bound method behind
        self.module.eval()

    def _report(self, values: Row) -> None:
        place = self.position
        seconds = time.monotonic() - self._began
        row = {"step": place.step, "seconds": seconds, **values}
        place.history.append(row)
        if self.accelerator.is_main_process:
            self.on_progress(row)

    def _finite(self, losses: dict[str, torch.Tensor]) -> Row:
        """Numbers of one step by name, over all processes. NonFiniteLoss, in all, names what is not finite."""
        stacked = torch.stack(list(losses.values()))  # one wait for the device instead of one a loss
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, "mean")
        numbers = stacked.tolist()
        bad = [f"{name} is {number}" for name, number in zip(losses, numbers) if not math.isfinite(number)]
        if bad:
            raise NonFiniteLoss(self._fault(", ".join(bad)))
        return dict(zip(losses, numbers))

    def _fault(self, what: str) -> str:
        kept = f"the checkpoint {self.file} is sound" if self.file.exists() else "no checkpoint was written yet"
        return (
            f"step {self.position.step + 1}: {what}; {kept}. "
            f"A lower train.learning_rate or train.precision fp32 may help"
        )


def _hold(model: nn.Module, parts: tuple[str, ...]) -> None:
    try:
        freeze(model, parts)
    except ValueError as error:
        raise InputError(f"train: {error}") from None


def _recompute_activations(model: nn.Module) -> None:
    """Switch gradient checkpointing on. Raises InputError where the model has none."""
    try:
        model.set_grad_checkpointing()  # type: ignore[operator]
    except (AttributeError, ValueError):
        config = getattr(model, "config", None)
        what = getattr(config, "backbone", type(model).__name__)
        raise InputError(f"train.grad_checkpointing: {what} cannot recompute its activations; switch it off") from None


def _accelerator(precision: str) -> Accelerator:
    device = choose_device()
    dtype = choose_precision(precision, device)
    if dtype == torch.float16 and device.type == "cpu":
        raise InputError("train.precision: fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
    # Accelerate keeps the first precision of a process for good; a second run here may want another one.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=ACCELERATE_NAMES[dtype], cpu=device.type == "cpu")
