"""A prepared model gives what autocast gives, bit for bit, and leaves the model it was made from alone."""

import pytest
import torch

from maskformer.model import MaskFormer
from maskformer.precision import prepare

TINY = {"num_classes": 3, "num_queries": 5, "pixel_dim": 32, "mask_dim": 32, "hidden_dim": 32, "feedforward_dim": 64}
SWIN = {"backbone_options": {"embed_dim": 12, "depths": (1, 1, 1, 1), "heads": (1, 2, 3, 4)}, "decoder_layers": 2}


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("maskformer-swin-tiny", SWIN),
        ("mask2former-swin-tiny", {**SWIN, "encoder_layers": 1}),
        ("maskformer-resnet50", {"backbone": "resnet18", "decoder_layers": 1}),
        ("pem-stdc1", {"decoder_layers": 2}),
    ],
)
def test_same_bits_as_autocast(preset: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = MaskFormer.from_preset(preset, **TINY, **options).eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    ready, x = prepare(model, torch.bfloat16), torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            wanted, ours = model(x), ready(x)
        exact = model(x)
    assert torch.equal(ours.class_logits, wanted.class_logits) and torch.equal(ours.mask_logits, wanted.mask_logits)
    assert not torch.equal(ours.mask_logits.float(), exact.mask_logits)
    assert {parameter.dtype for parameter in ready.parameters()} == {torch.float32, torch.bfloat16}
    assert all(torch.equal(x, before[name]) and x.dtype == before[name].dtype for name, x in model.state_dict().items())
    assert prepare(model, torch.float32) is model
