import pytest
import timm
import torch

from maskformer.backbones import build_backbone
from maskformer.config import ModelConfig
from maskformer.vit_pyramid import ViTPyramid, is_plain_vit
from maskformer.weights import load_backbone_weights

NAME, TINY = "vit_tiny_patch16_224", {"depth": 2, "img_size": 64}


def pyramid(name: str = NAME, **options) -> ViTPyramid:
    torch.manual_seed(0)
    return ViTPyramid(name, width=16, **{**TINY, **options}).eval()


def test_which_networks_are_plain_vits() -> None:
    assert all(map(is_plain_vit, (NAME, "vit_small_patch14_reg4_dinov2", "deit_tiny_patch16_224")))
    assert is_plain_vit("vit_small_patch16_dinov3")
    assert not any(map(is_plain_vit, ("resnet50", "swin_tiny_patch4_window7_224", "no_such_net")))


@pytest.mark.parametrize("name", [NAME, "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("size", [(64, 64), (50, 83), (7, 33)])
def test_four_maps_at_any_size(name: str, size: tuple[int, int]) -> None:
    height, width = size
    network = pyramid(name)
    with torch.no_grad():
        maps = network(torch.randn(1, 3, *size))
    for stride, features, channels in zip((4, 8, 16, 32), maps, network.channels, strict=True):
        assert features.shape == (1, channels, -(-height // stride), -(-width // stride))


def test_the_last_map_lies_where_the_patches_are() -> None:
    """A changed patch changes its own place most: rows and columns are not swapped."""
    network = pyramid()
    network.levels[2] = torch.nn.Identity()
    x = torch.zeros(1, 3, 64, 128)
    y = x.clone()
    y[..., 16:32, 96:112] = 3.0
    with torch.no_grad():
        change = (network(y)[2] - network(x)[2]).abs().sum(1)[0]
    assert divmod(int(change.argmax()), change.shape[1]) == (1, 6)


def test_image_alone_and_in_a_batch() -> None:
    network, x = pyramid(), torch.randn(2, 3, 40, 72)
    with torch.no_grad():
        together = network(x)
        for i in range(2):
            for a, b in zip(network(x[i : i + 1]), together, strict=True):
                torch.testing.assert_close(a[0], b[i], atol=1e-5, rtol=1e-5)


def test_pretrained_weights_of_another_patch_and_size() -> None:
    name = "vit_small_patch14_reg4_dinov2"
    source = timm.create_model(name, num_classes=0, depth=2, img_size=70)
    network = pyramid(name)
    account = load_backbone_weights(network, source.state_dict())
    assert not account.missing and not account.unexpected
    vit = network.network
    assert vit.patch_embed.proj.weight.shape[2:] == (16, 16) and vit.patch_embed.grid_size == (4, 4)
    torch.testing.assert_close(vit.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    # One grey value gives one answer, whatever the patch: resampling keeps the patches' response to it.
    grey = torch.ones(1, 3, 70, 70)
    with torch.no_grad():
        wanted = source.patch_embed.proj(grey)[0, :, 0, 0]
        got = vit.patch_embed.proj(torch.ones(1, 3, 64, 64))[0, :, 0, 0]
    torch.testing.assert_close(got, wanted, atol=0.02, rtol=0.1)


def test_other_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_size 8"):
        pyramid(patch_size=8)


def test_from_a_config() -> None:
    config = ModelConfig(backbone=NAME, in_channels=2, backbone_options={**TINY, "drop_path": 0.1})
    backbone = build_backbone(config)
    assert backbone.channels == (256,) * 4
    assert backbone.network.patch_embed.proj.in_channels == 2
