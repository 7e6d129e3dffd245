"""Counting nuclei, three seeds, split by picture: the mask model, its soft count, and a density-map U-Net beside it.

Needs the nuclei of shared/data (see configs/counting/nuclei.yaml); says so and ends where they are not there. Tree
crowns, from a published package, go the same way (`counting_crowns`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from adapters.errors import InputError
from benchmarks import density_unet
from benchmarks.record import ROOT, write_result
from pipelines.bundle import load_bundle
from pipelines.config import PredictOptions, RunConfig, load_config
from pipelines.counting import Counter
from pipelines.counting_metrics import count_record, counting_scores
from pipelines.experiments import changed, train
from pipelines.labelled import LabelledData
from pipelines.predictor import settle
from pipelines.splits import Place

CONFIG = ROOT / "configs" / "counting" / "nuclei.yaml"
SEEDS = (0, 1, 2)  # of the split, the weights and the crops
KEYS = ("mae", "rmse", "nae", "mean_count", "game1", "game2", "game3", "loc_f1_4", "loc_f1_10", "loc_f1_16")


GOAL = {"mae_over_mean_count": 0.1, "loc_f1_10": 0.85}


def main() -> None:
    measure("counting", CONFIG, GOAL)


def measure(name: str, path: Path, goal: dict[str, float], plot: int | None = None) -> None:
    """Train, count and write the result; `plot`: the side in px of the squares that held-out scenes are cut into."""
    try:
        config = load_config(path)
    except InputError as error:
        print(f"skipped: the pictures are not here ({error})")
        return
    rows = [run(config, seed, plot) for seed in SEEDS]
    print(write_result(name, path, {"goal": goal, "seeds": rows, "means": means(rows)}))


def run(config: RunConfig, seed: int, plot: int | None = None) -> dict[str, Any]:
    """One seed: its own split, both models trained for the config's minutes, scored on the held-out pictures."""
    split = config.split.model_copy(update={"seed": seed})
    config = changed(config.model_copy(update={"split": split}), None, seed)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(config, Path(folder))
        bundle = load_bundle(outcome.bundle)
        counter = Counter(bundle.build(), bundle.adapter, _options(config, bundle))
    assert config.train.minutes is not None
    with LabelledData(config) as data:
        network, steps = density_unet.fit(config, data, seed, config.train.minutes)
        records, soft, dense, truth = [], [], [], []
        for place in plots(data.split.test, plot):
            source, annotation = data.view(place)
            found = counter.count(source)
            records.append(count_record(found.objects, annotation.objects, len(data.adapter.classes)))
            soft.append(found.expected)
            dense.append(density_unet.count(network, source, data))
            truth.append(len(annotation.objects))
    scores = counting_scores(records)
    row = {
        "seed": seed,
        "pictures": len(truth),
        "steps": outcome.metrics["training"]["steps"],
        "seconds": outcome.metrics["training"]["seconds"],
        "score": bundle.thresholds["score"],
        "mask_model": {key: round(float(scores[key]), 4) for key in KEYS},
        "soft_count": _errors(soft, truth),
        "density_unet": {**_errors(dense, truth), "steps": steps},
    }
    print(row, flush=True)
    return row


def plots(places: list[Place], side: int | None) -> list[Place]:
    """The places, cut into squares of `side` px; what is left at the far edges is left out."""
    if side is None:
        return places
    return [
        Place(place.item, (slice(row, row + side), slice(column, column + side)))
        for place in places
        for row in range(place.window[0].start, place.window[0].stop - side + 1, side)
        for column in range(place.window[1].start, place.window[1].stop - side + 1, side)
    ]


def _options(config: RunConfig, bundle: Any) -> PredictOptions:
    return settle(config.predict.model_copy(update={"task": "instance"}), bundle.adapter, bundle.thresholds)


def _errors(counted: list[float], truth: list[int]) -> dict[str, float]:
    errors = np.abs(np.array(counted) - np.array(truth))
    return {"mae": round(float(errors.mean()), 4), "rmse": round(float(np.sqrt((errors**2).mean())), 4)}


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds; the mask model's MAE also as a share of the mean count."""
    values = {
        name: {key: round(mean(row[name][key] for row in rows), 4) for key in rows[0][name]}
        for name in ("mask_model", "soft_count", "density_unet")
    }
    mask = values["mask_model"]
    mask["mae_over_mean_count"] = round(mask["mae"] / mask["mean_count"], 4)
    return values


if __name__ == "__main__":
    main()
