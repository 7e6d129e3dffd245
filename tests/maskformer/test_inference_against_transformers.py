"""Post-processing beside transformers': the same where it is right, and in words where it is not.

Its image processors are driven with made-up logits. What they do wrong: Mask2Former's resizes to 384 × 384 first and
both count a segment's area on score-weighted masks, number segments twice, keep padding, and ignore an argument.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskformer import inference
from maskformer.config import ModelConfig
from maskformer.losses import build_criterion
from maskformer.prediction import Prediction
from maskformer.targets import Target

transformers = pytest.importorskip("transformers")


def theirs(prediction: Prediction) -> Any:
    return SimpleNamespace(class_queries_logits=prediction.class_logits, masks_queries_logits=prediction.mask_logits)


def mask2former() -> Any:
    return transformers.Mask2FormerImageProcessor()


def maskformer() -> Any:
    return transformers.MaskFormerImageProcessor()


def smooth(seed: int, queries: int = 6, classes: int = 3, side: int = 24) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, queries, side // 4, side // 4, generator=generator)
    masks = 8 * F.interpolate(coarse, size=(side, side), mode="bicubic")
    return Prediction(4 * torch.randn(2, queries, classes + 1, generator=generator), masks)


def stripes(labels: list[int], classes: int, side: int = 96) -> Prediction:
    """Horizontal stripes, one a query, each sure of its class."""
    masks = torch.full((1, len(labels), side, side), -20.0)
    for q, rows in enumerate(torch.arange(side).chunk(len(labels))):
        masks[0, q, rows] = 20.0
    logits = torch.zeros(1, len(labels), classes + 1)
    logits[0, torch.arange(len(labels)), torch.tensor(labels)] = 9.0
    return Prediction(logits, masks)


# ---------------------------------------------------------------- the same, where it is right


@pytest.mark.parametrize("seed", range(3))
def test_semantic_is_theirs_at_mask_resolution_and_at_the_input_s(seed: int) -> None:
    """MaskFormer's processor weighs and sums at mask resolution, then resizes: equal where the order cannot matter."""
    prediction = smooth(seed)
    side = prediction.mask_logits.shape[-1]
    # Cells that are constant over 4 x 4 ones resize to themselves away from their borders: compare cell centres.
    blocks = Prediction(prediction.class_logits, prediction.mask_logits.repeat_interleave(4, 2).repeat_interleave(4, 3))
    got = inference.semantic(blocks, (16 * side, 16 * side)).argmax(1)[:, 8::16, 8::16]
    wanted = torch.stack(maskformer().post_process_semantic_segmentation(theirs(prediction)))
    assert torch.equal(got, wanted)


def test_instances_are_theirs_at_384() -> None:
    """At 384 pixels, where Mask2Former's processor works, from an input of 384 pixels: the same objects and scores."""
    prediction = smooth(5, side=96)
    got = inference.instances(prediction, (384, 384), score=0.3, limit=6)
    processed = mask2former().post_process_instance_segmentation(
        theirs(prediction), threshold=0.3, target_sizes=[(384, 384)] * 2, return_binary_maps=True
    )
    for ours, other in zip(got, processed, strict=True):
        order = np.argsort([-one["score"] for one in other["segments_info"]], kind="stable")
        np.testing.assert_allclose(ours.scores, [other["segments_info"][n]["score"] for n in order], atol=1e-5)
        assert ours.labels.tolist() == [other["segments_info"][n]["label_id"] for n in order]
        np.testing.assert_array_equal(ours.to_dense(), other["segmentation"].numpy().astype(bool)[order])
    assert sum(map(len, got)) > 2


def test_panoptic_is_theirs_where_nothing_is_fused_or_weighed() -> None:
    """At 384 pixels, sure classes (a score near 1 weighs nothing), things only: the same map of segments."""
    prediction = smooth(6, side=96)
    sure = prediction._replace(class_logits=100 * F.one_hot(prediction.class_logits.argmax(-1), 4).float())
    got = inference.panoptic(sure, (384, 384), score=0.5, overlap=0.02)
    processed = mask2former().post_process_panoptic_segmentation(
        theirs(sure), 0.5, overlap_mask_area_threshold=0.02, label_ids_to_fuse=set(), target_sizes=[(384, 384)] * 2
    )
    for ours, other in zip(got, processed, strict=True):
        assert ours.labels.tolist() == [one["label_id"] for one in other["segments_info"]]
        np.testing.assert_array_equal(ours.to_label_map(), other["segmentation"].numpy())
    assert sum(map(len, got)) > 2


# ---------------------------------------------------------------- where it is wrong


def test_theirs_gives_two_persons_one_number() -> None:
    """Sky, person, sky, person: once the second sky is fused, theirs counts on from the sky's number."""
    prediction = stripes([1, 0, 1, 0], classes=2)
    (other,) = mask2former().post_process_panoptic_segmentation(
        theirs(prediction), label_ids_to_fuse={1}, target_sizes=[(384, 384)]
    )
    persons = [one["id"] for one in other["segments_info"] if one["label_id"] == 0]
    assert persons == [2, 2]
    assert sorted(other["segmentation"].unique().tolist()) == [1, 2]
    (ours,) = inference.panoptic(prediction, (384, 384), thing=[True, False])
    assert ours.labels.tolist() == [1, 0, 0]
    assert sorted(np.unique(ours.to_label_map())) == [1, 2, 3]


def test_theirs_draws_at_384_pixels_whatever_is_asked() -> None:
    """A one-cell object in a mask of 512 cells: resized to 384 first, it has another shape or none."""
    masks = torch.full((1, 1, 512, 512), -8.0)
    masks[0, 0, 100, 100] = 10.0
    prediction = Prediction(torch.tensor([[[9.0, 0.0]]]), masks)
    (ours,) = inference.instances(prediction, (2048, 2048))
    assert len(ours) == 1
    full = F.interpolate(masks, size=(2048, 2048), mode="bilinear", align_corners=False)[0, 0] > 0
    assert ours.areas.tolist() == [int(full.sum())]
    (other,) = mask2former().post_process_instance_segmentation(
        theirs(prediction), target_sizes=[(2048, 2048)], return_binary_maps=True
    )
    drawn = np.asarray(other["segmentation"]).reshape(-1, 2048, 2048)[0] > 0
    assert drawn.sum() != full.sum()


def test_theirs_drops_a_sound_mask_for_its_score() -> None:
    """Their area test is on p·m ≥ 0.5: of a mask of 0.9 with a score of 0.55 (0.495) nothing is left."""
    masks = torch.full((1, 1, 96, 96), -8.0)
    masks[..., 24:72, 24:72] = float(np.log(9))  # m = 0.9
    p = 0.55
    prediction = Prediction(torch.tensor([[[float(np.log(p / (1 - p))), 0.0]]]), masks)
    (other,) = mask2former().post_process_panoptic_segmentation(
        theirs(prediction), threshold=0.5, label_ids_to_fuse=set(), target_sizes=[(384, 384)]
    )
    assert other["segments_info"] == []
    (ours,) = inference.panoptic(prediction, (384, 384), score=0.5, inside_mask=True)
    assert len(ours) == 1
    assert ours.areas[0] == pytest.approx((4 * 48) ** 2, rel=0.1)


def test_theirs_never_crops_the_padding() -> None:
    """A picture half as wide as its padded input, covered by one object: theirs says it covers half the picture."""
    masks = torch.full((1, 1, 96, 96), -20.0)
    masks[..., :48] = 20.0
    prediction = Prediction(torch.tensor([[[9.0, 0.0]]]), masks)
    (other,) = mask2former().post_process_instance_segmentation(
        theirs(prediction), target_sizes=[(384, 192)], return_binary_maps=True
    )
    assert float(np.asarray(other["segmentation"]).mean()) == pytest.approx(0.5, abs=0.01)
    (ours,) = inference.instances(prediction, (384, 192), valid=(384, 192))
    assert ours.areas.tolist() == [384 * 192]


def test_theirs_ignores_the_mask_threshold() -> None:
    """mask_threshold=0.9 changes nothing in their instances; ours shrink."""
    prediction = smooth(5, side=96)
    loose, strict = (
        mask2former().post_process_instance_segmentation(
            theirs(prediction), threshold=0.3, mask_threshold=m, target_sizes=[(384, 384)] * 2
        )
        for m in (0.5, 0.9)
    )
    assert all(torch.equal(a["segmentation"], b["segmentation"]) for a, b in zip(loose, strict, strict=True))
    ours = [inference.instances(prediction, (384, 384), score=0.3, mask=m)[0].areas.sum() for m in (0.5, 0.9)]
    assert ours[1] < ours[0]


def test_theirs_trains_towards_255_where_pictures_differ_in_size() -> None:
    """Their processor pads binary masks with ignore_index; a cross-entropy towards 255 falls without end.

    Ours keeps such pixels out: whatever is predicted there, the loss is the same.
    """
    images = [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)]
    maps = [np.ones((32, 32), np.int64), np.ones((32, 64), np.int64)]
    processor = transformers.Mask2FormerImageProcessor(ignore_index=255, do_resize=False, size_divisor=32)
    (mask, _) = processor(images, maps, return_tensors="pt")["mask_labels"]
    assert sorted(mask.unique().tolist()) == [1.0, 255.0]

    seen = torch.zeros(32, 64, dtype=torch.bool)
    seen[:, :32] = True
    target = Target.from_masks(torch.tensor([0]), seen[None], seen)
    assert sorted(target.masks.float().unique().tolist()) == [0.0, 1.0]
    config = ModelConfig(num_classes=1, num_queries=2, num_points=64, mask_loss="bce")
    logits = torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    elsewhere = logits.clone()
    elsewhere[..., 9:] = 30.0  # column 8 takes part: upsampled, it reaches to the picture's last pixels
    for resolution in ("input", "mask"):
        criterion = build_criterion(config.replace(loss_resolution=resolution))
        losses = [criterion(Prediction(torch.zeros(1, 2, 2), x), [target])["total"] for x in (logits, elsewhere)]
        torch.testing.assert_close(losses[0], losses[1])
