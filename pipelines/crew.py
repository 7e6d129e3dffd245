"""Training on several processes: `accelerate launch … -m pipelines.cli train CONFIG --out OUT`.

All processes step together; the first one alone validates, scores, writes files and records. The others are its crew:
they go through the same fits in the same order, with their share of every batch, and leave nothing. `train.batch` is a
process' own share, so two processes with batch 2 are one with batch 4.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import InputError
from pipelines.config import ModelOptions, RunConfig, TrainOptions

if TYPE_CHECKING:
    from pipelines.labelled import LabelledData


def world() -> int:
    """How many processes train together, as their launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_crew() -> bool:
    """Whether this process is not the first."""
    return world() > 1 and int(os.environ.get("RANK", "0")) > 0


def check_crew(config: RunConfig) -> None:
    """InputError where this training cannot be shared."""
    from pipelines.labelled import load_adapter

    if world() > 1 and load_adapter(config).volume is not None:
        raise InputError("training on volumes uses one process; start it without a launcher")


def serve(
    config: RunConfig, out: str | Path, *, minutes: float | None = None, seed: int | None = None, resume: bool = False
) -> None:
    """What `pipelines.experiments.train` does on the first process, without all but the steps."""
    from pipelines.experiments import baseline_settings, changed
    from pipelines.labelled import LabelledData

    config, out = changed(config, minutes, seed), Path(out)
    with LabelledData(config) as data:
        _fit(config.model, config.train, data, out / "checkpoints", resume)
        if config.baseline:
            model, options = baseline_settings(config)
            _fit(model, options, data, out / "baseline-checkpoints", resume)


def _fit(wanted: ModelOptions, options: TrainOptions, data: LabelledData, checkpoints: Path, resume: bool) -> None:
    from maskformer.losses import build_criterion
    from pipelines.checkpoints import NAME
    from pipelines.datasets import CropDataset, Part
    from pipelines.starting import build
    from pipelines.training import fit

    model_config, model = build(wanted, data.adapter, options.seed)
    scenes = [(data.scenes[place.item], place.window) for place in data.split.train]
    parts = [Part(scene.path, scene.annotations, window) for scene, window in scenes]
    begun = resume and (checkpoints / NAME).exists()
    with closing(CropDataset(parts, data.adapter, options.crop, options.augment, options.seed)) as dataset:
        fit(model, build_criterion(model_config), dataset, options, checkpoints, resume=begun)
