"""What a published checkpoint says beside its tensors rules prediction: its task, its classes, its thresholds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.class_lists import class_map
from maskformer.config import ModelConfig
from maskformer.conversion.account import Facts
from maskformer.prediction import Prediction
from pipelines.config import PredictOptions
from pipelines.converting import adapter_of, published_list, task_in
from pipelines.predictor import Predictor, settle
from pipelines.volumes.options import VolumeOptions
from pipelines.volumes.prediction import VolumeModel, VolumePredictor
from tests.models import adapter, tiny_bundle

SIDE = 64


@pytest.mark.parametrize(
    "name, task",
    [
        ("mask2former-swin-tiny-cityscapes-semantic", "semantic"),
        ("Mask2Former-Swin-Tiny-COCO-Panoptic", "panoptic"),
        ("mask2former-swin-tiny-coco-instance", "instance"),
        ("maskformer-swin-tiny-ade", None),
    ],
)
def test_the_task_is_the_word_in_the_name(name: str, task: str | None) -> None:
    assert task_in(name) == task


def test_a_semantic_model_has_no_things_and_covers_the_plane() -> None:
    facts = Facts(classes=("road", "car"), ignore_index=255)
    made = adapter_of("x", ModelConfig(num_classes=2), facts, task="semantic")
    assert made.classes.is_thing == (False, False) and made.covers and made.overlap == "exclusive"
    free = adapter_of("x", ModelConfig(num_classes=2), facts, task="instance")
    assert free.classes.is_thing == (True, True) and not free.covers and free.overlap == "free"
    told = adapter_of("x", ModelConfig(num_classes=2), facts, things="car", task="semantic")
    assert told.classes.is_thing == (False, True), "the user knows better"


def test_published_classes_bring_their_kinds_and_values() -> None:
    known = class_map("ade20k")
    names = [f"{name}, by another name" for name in known.names]  # as transformers' folders spell them
    names[8] = "windowpane, window "
    assert published_list(names) == known
    made = adapter_of("x", ModelConfig(num_classes=150), Facts(classes=tuple(names)), task="panoptic")
    assert made.classes.is_thing == known.is_thing and made.classes[149].values == (150,)
    assert made.classes.names[8] == "windowpane, window" and 0 in made.classes.ignore_values
    assert published_list(known.names[:-1]) is None and published_list(known.names[::-1]) is None


class Fixed(torch.nn.Module):
    """Two queries of class 0 and 1; the first is sure of the left half, the second less so of everything."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: torch.Tensor) -> Prediction:
        classes = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0]]])
        masks = torch.full((1, 2, SIDE // 4, SIDE // 4), -6.0)
        masks[0, 0, :, : SIDE // 8] = 6.0
        masks[0, 1] = -0.4  # p = 0.4
        return Prediction(classes, masks)


def predicted(options: PredictOptions, thresholds: dict[str, float], model: torch.nn.Module, **settings):
    what = adapter(2, tile=SIDE, tile_overlap=0, **settings)
    settled = settle(options.model_copy(update={"device": "cpu", "precision": "fp32"}), what, thresholds)
    array = np.ones((1, SIDE, SIDE), np.float32), np.ones((SIDE, SIDE), bool)
    return Predictor(model, what, settled)([array])[0].objects


def test_the_checkpoints_mask_threshold_decides_which_pixels_are_an_objects() -> None:
    options = PredictOptions(task="instance", score=0.1)
    assert sorted(predicted(options, {}, Fixed()).labels) == [0]
    lower = predicted(options, {"mask": 0.3}, Fixed())
    assert sorted(lower.labels) == [0, 1] and lower.areas.max() == SIDE * SIDE
    assert sorted(predicted(options.model_copy(update={"mask": 0.5}), {"mask": 0.3}, Fixed()).labels) == [0]


class Faint(Fixed):
    """The second query's mask is the right quarter, and it is the less unlikely one beside it, too."""

    def forward(self, x: torch.Tensor) -> Prediction:
        said = super().forward(x)
        said.mask_logits[0, 1, :, 3 * SIDE // 16 :] = 6.0
        return said


@pytest.mark.parametrize(
    "decoder, covers, area", [("detr", True, SIDE // 2), ("masked", True, SIDE // 4), ("detr", False, SIDE // 4)]
)
def test_who_wins_a_pixel_takes_it_by_the_rule_of_the_family(decoder: str, covers: bool, area: int) -> None:
    model = Faint(ModelConfig(query_decoder=decoder))
    options = PredictOptions(task="panoptic", score=0.5, keep=0.0)
    found = predicted(options, {}, model, covers=covers, overlap="exclusive")
    assert sorted(found.labels) == [0, 1]
    assert found.areas[list(found.labels).index(1)] == pytest.approx(area * SIDE, rel=0.15)


def test_the_checkpoints_overlap_threshold_decides_which_segments_stay() -> None:
    class Halved(Fixed):
        def forward(self, x: torch.Tensor) -> Prediction:
            said = super().forward(x)
            said.mask_logits[0, 1] = 1.0  # all of the plane, and half of it is lost to the first
            return said

    options = PredictOptions(task="panoptic", score=0.5)
    assert len(predicted(options, {}, Halved(), overlap="exclusive")) == 1
    assert len(predicted(options, {"overlap": 0.4}, Halved(), overlap="exclusive")) == 2


TASKS = [("semantic", None, "semantic"), ("semantic", "instance", "instance"), (None, None, "instance")]


@pytest.mark.parametrize(("said", "asked", "task"), TASKS)
def test_volumes_are_predicted_for_the_bundles_task(said, asked, task, tmp_path: Path) -> None:
    provenance = {"task": said} if said else {}
    bundle = tiny_bundle(tmp_path / "bundle", adapter(2, spacing=(2, 1, 1)), provenance=provenance)
    predictor = VolumePredictor(VolumeModel.load(bundle), VolumeOptions(task=asked, device="cpu", precision="fp32"))
    assert predictor.settled.task == task
