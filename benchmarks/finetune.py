"""A fine-tune against transformers' Mask2Former: same initial weights, crops and optimiser; equal steps, equal time.

About 20 minutes. Buildings of one aerial scene (../shared/data/satellite/buildings at 15 cm), learned on its western
two thirds and scored on the rest. Both start from EfficientNet-lite0's ImageNet weights and from the SAME random
decoders (theirs, converted), see the same crops in the same order, in bfloat16 autocast, and one code scores both. Ours
runs twice: for as many steps as theirs, and for as many seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import ours
from benchmarks.measure import THREADS
from benchmarks.record import ROOT, write_result
from maskformer import inference
from maskformer.config import ModelConfig
from maskformer.losses import build_criterion
from maskformer.model import MaskFormer
from maskformer.prediction import Prediction

SCENE = ROOT.parent / "shared" / "data" / "satellite" / "buildings"
BACKBONE = "tf_efficientnet_lite0"
SEEDS = (0, 1, 2)
STEPS = 100
BATCH = 4
CROP = 256
SPLIT = 1024  # column of the 15 cm scene where the held-out part begins
RATE, BACKBONE_SHARE, DECAY, CLIP, WARM_UP = 5e-4, 0.2, 0.05, 0.01, 0.1  # clip and decay as published
SIZES = {"num_queries": 50, "feedforward": 512, "encoder_layers": 2, "decoder_layers": 3, "width": 128}
POINTS = 3136  # 12544 at a quarter of the published crop's pixels
CONFIG = ModelConfig.from_preset(
    "mask2former-resnet50",
    backbone=BACKBONE,
    num_classes=1,
    pixel_dim=SIZES["width"],
    mask_dim=SIZES["width"],
    hidden_dim=SIZES["width"],
    encoder_layers=SIZES["encoder_layers"],
    encoder_feedforward_dim=SIZES["feedforward"],
    decoder_layers=SIZES["decoder_layers"],
    feedforward_dim=SIZES["feedforward"],
    num_queries=SIZES["num_queries"],
    num_points=POINTS,
)


class Scene(NamedTuple):
    """pixels (3, H, W) scaled to -1..1 as the weights expect, objects (H, W) int32: 0 ground, n building n."""

    pixels: Tensor
    objects: Tensor


class Batch(NamedTuple):
    """pixels (B, 3, S, S); of each picture the labels (N,) and a map (S, S) of 0 and 1..N."""

    pixels: Tensor
    labels: list[Tensor]
    maps: list[Tensor]


def main() -> None:
    if not SCENE.exists():
        print(f"finetune: skipped, there is no {SCENE}")
        return
    torch.set_num_threads(THREADS)
    learn, held_out = read(SCENE)
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        seconds = 0.0
        for side in ("theirs", "ours, equal steps", "ours, equal time"):
            torch.manual_seed(seed)
            their_model = build_theirs()
            model = their_model if side == "theirs" else converted(their_model)
            allowed = seconds if side.endswith("time") else None
            steps, spent = fit(model, learn, seed, allowed)
            seconds = spent if side == "theirs" else seconds
            runs.append({"side": side, "seed": seed, "steps": steps, "seconds": round(spent, 1)})
            runs[-1].update(score(model, held_out))
            print(runs[-1], flush=True)
    means = summary(runs)
    print("\n".join(rows(means)))
    settings = {"steps": STEPS, "batch": BATCH, "crop": CROP, "rate": RATE, "points": POINTS, **SIZES}
    print(write_result("finetune", None, {"settings": settings, "runs": runs, "means": means}))


# ---------------------------------------------------------------- data


def read(folder: Path) -> tuple[Scene, Scene]:
    """The part to learn from and the held-out part."""
    import rasterio
    from scipy import ndimage

    with rasterio.open(folder / "scene.tif") as scene, rasterio.open(folder / "mask.tif") as mask:
        half = (scene.height // 2, scene.width // 2)
        pixels = scene.read(out_shape=(3, *half), resampling=rasterio.enums.Resampling.average)
        buildings = mask.read(1, out_shape=half) == 1
    scaled = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1
    parts = []
    for columns in (slice(0, SPLIT), slice(SPLIT, None)):  # labelled apart: a building on the border is two
        objects = torch.from_numpy(ndimage.label(buildings[:, columns])[0].astype(np.int32))
        parts.append(Scene(scaled[:, :, columns].contiguous(), objects))
    return parts[0], parts[1]


def batches(scene: Scene, seed: int) -> Iterator[Batch]:
    """Random crops, flipped and turned at random: the same sequence for the same seed, without end."""
    random = np.random.default_rng(seed)
    height, width = scene.objects.shape
    while True:
        pixels, labels, maps = [], [], []
        for _ in range(BATCH):
            top, left = random.integers(height - CROP + 1), random.integers(width - CROP + 1)
            window = (slice(top, top + CROP), slice(left, left + CROP))
            turns, flip = int(random.integers(4)), bool(random.integers(2))
            picture = torch.rot90(scene.pixels[(slice(None), *window)], turns, (1, 2))
            drawn = torch.rot90(scene.objects[window], turns, (0, 1))
            picture, drawn = (x.flip(-1) if flip else x for x in (picture, drawn))
            _, numbered = torch.cat((drawn.new_zeros(1), drawn.flatten())).unique(return_inverse=True)
            pixels.append(picture)
            maps.append(numbered[1:].view(CROP, CROP).int())
            labels.append(torch.zeros(int(numbered.max()), dtype=torch.int64))
        if all(len(one) for one in labels):  # pictures without objects are not this comparison's question
            yield Batch(torch.stack(pixels), labels, maps)


# ---------------------------------------------------------------- models


def build_theirs() -> nn.Module:
    """transformers' Mask2Former over timm's network with ImageNet weights; decoders as the seed makes them."""
    import transformers

    from pipelines.samples import fetch_weights

    width = SIZES["width"]
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.TimmBackboneConfig(
            backbone=BACKBONE, out_indices=[1, 2, 3, 4], freeze_batch_norm_2d=True
        ),
        num_labels=1,
        feature_size=width,
        mask_feature_size=width,
        hidden_dim=width,
        num_queries=SIZES["num_queries"],
        encoder_layers=SIZES["encoder_layers"],
        encoder_feedforward_dim=SIZES["feedforward"],
        decoder_layers=SIZES["decoder_layers"] + 1,  # it counts the prediction of the raw queries
        dim_feedforward=SIZES["feedforward"],
        train_num_points=POINTS,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    network = their_network(model)
    weights = fetch_weights(BACKBONE.removeprefix("tf_"))
    network.load_state_dict({name: weights[name] for name in network.state_dict() if name in weights})
    return model


def their_network(model: Any) -> nn.Module:
    """timm's network inside transformers' model."""
    network: nn.Module = model.model.pixel_level_module.encoder._backbone
    return network


def converted(model: nn.Module) -> MaskFormer:
    """The same weights in our model. The converter knows no timm backbones: its table is used for all the rest."""
    from maskformer.conversion import names_transformers
    from maskformer.conversion.renaming import assemble, rename

    inside = {id(x) for x in their_network(model).state_dict(keep_vars=True).values()}
    rest = {name: x for name, x in model.state_dict(keep_vars=True).items() if id(x) not in inside}
    table = names_transformers.table_of("mask2former", CONFIG)
    renaming = rename(rest, table, names_transformers.LEFT_OVER)
    given = {name: assemble(rest, parts).detach() for name, parts in renaming.sources.items()}
    ours_model = MaskFormer(CONFIG)
    network = {f"backbone.network.{name}": x for name, x in their_network(model).state_dict().items()}
    missing, unexpected = ours_model.load_state_dict({**given, **network}, strict=False)
    lost = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lost or unexpected or renaming.unexpected:
        raise ValueError(f"not the same model: {lost[:3]}, {unexpected[:3]}, {list(renaming.unexpected)[:3]}")
    return ours_model


def objective(model: nn.Module) -> Callable[[Batch], Tensor]:
    """The loss of a batch, bfloat16 in the model."""
    if isinstance(model, MaskFormer):
        criterion = build_criterion(CONFIG)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def our_loss(batch: Batch) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                prediction = model(ours.channels_last(batch.pixels))
            pairs = zip(batch.labels, batch.maps, strict=True)
            total: Tensor = criterion(prediction, [ours.target(labels, drawn) for labels, drawn in pairs])["total"]
            return total

        return our_loss

    def their_loss(batch: Batch) -> Tensor:
        pairs = zip(batch.labels, batch.maps, strict=True)
        masks = [torch.stack([drawn == n + 1 for n in range(len(k))]).float() for k, drawn in pairs]
        with torch.autocast("cpu", torch.bfloat16):
            loss: Tensor = model(pixel_values=batch.pixels, mask_labels=masks, class_labels=batch.labels).loss
        return loss

    return their_loss


# ---------------------------------------------------------------- training and scoring


def fit(model: nn.Module, scene: Scene, seed: int, seconds: float | None) -> tuple[int, float]:
    """Train for STEPS, or for as many seconds; (steps, seconds). Warm-up, then poly 0.9 over the share that is done."""
    loss_of = objective(model)
    optimizer = torch.optim.AdamW(groups(model))
    rates = [group["lr"] for group in optimizer.param_groups]
    data = batches(scene, seed)
    model.train()
    began, step = time.monotonic(), 0
    while (done := step / STEPS if seconds is None else (time.monotonic() - began) / seconds) < 1:
        factor = min(1.0, (done + 1 / STEPS) / WARM_UP) * (1 - done) ** 0.9
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.zero_grad(set_to_none=True)
        loss_of(next(data)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        step += 1
    return step, time.monotonic() - began


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """AdamW's groups by one rule for both: slower backbone; no decay on vectors (norms, biases) and embeddings."""
    network = model.backbone if isinstance(model, MaskFormer) else their_network(model)
    inside = {id(parameter) for parameter in network.parameters()}  # type: ignore[union-attr]
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or id(parameter) in embeddings
            found.setdefault((id(parameter) in inside, plain), []).append(parameter)
    return [
        {"params": each, "lr": RATE * (BACKBONE_SHARE if slow else 1.0), "weight_decay": 0.0 if plain else DECAY}
        for (slow, plain), each in found.items()
    ]


@torch.inference_mode()
def score(model: nn.Module, scene: Scene) -> dict[str, float]:
    """Foreground IoU, and F1 and PQ of objects (summed over tiles of CROP), by `maskformer.inference` for both."""
    from maskformer.masks import MaskSet
    from pipelines.metrics import panoptic_counts, panoptic_scores

    model.eval()
    inside = united = 0
    counts = None
    height, width = scene.objects.shape
    for top in range(0, height, CROP):
        for left in range(0, width, CROP):
            x = scene.pixels[None, :, top : top + CROP, left : left + CROP]
            truth = scene.objects[top : top + CROP, left : left + CROP].numpy()
            prediction = predict(model, x)
            building = (inference.semantic(prediction, (CROP, CROP))[0, 0] > 0.5).numpy()
            inside += int((building & (truth > 0)).sum())
            united += int((building | (truth > 0)).sum())
            ids = [n for n in np.unique(truth) if n]
            masks = np.stack([truth == n for n in ids]) if ids else np.zeros((0, CROP, CROP), bool)
            found = inference.panoptic(prediction, (CROP, CROP), thing=[True], score=0.5, inside_mask=True)[0]
            one = panoptic_counts(found, MaskSet.from_dense(masks, np.zeros(len(ids), np.int64)), 1)
            counts = one if counts is None else counts + one
    panoptic = panoptic_scores(counts)
    return {"foreground_iou": round(inside / max(united, 1), 4), **{k: round(panoptic[k], 4) for k in ("pq", "rq")}}


def predict(model: nn.Module, x: Tensor) -> Prediction:
    """A picture's prediction in our words, float32, whoever made it."""
    if isinstance(model, MaskFormer):
        prediction = model(ours.channels_last(x))
        return Prediction(prediction.class_logits, prediction.mask_logits)
    out = model(pixel_values=x)
    return Prediction(out.class_queries_logits, out.masks_queries_logits)


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the seeds, by side."""
    sides = dict.fromkeys(run["side"] for run in runs)
    keys = ("steps", "seconds", "foreground_iou", "pq", "rq")
    return {s: {key: round(mean(r[key] for r in runs if r["side"] == s), 4) for key in keys} for s in sides}


def rows(means: dict[str, dict[str, float]]) -> list[str]:
    """Markdown rows: side, steps, seconds, foreground IoU, PQ, RQ (F1 of objects)."""
    return [
        f"| {side} | {one['steps']:.0f} | {one['seconds']:.0f} "
        f"| {one['foreground_iou']:.3f} | {one['pq']:.3f} | {one['rq']:.3f} |"
        for side, one in means.items()
    ]


if __name__ == "__main__":
    main()
