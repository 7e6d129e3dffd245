import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InputError
from pipelines.augmentation import NAMES, SCALES, Augmentation, resize

GEOMETRY = ("flip", "mirror", "rotate")


def crop(channels: int, side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A crop whose planes are pictured in its channels, without data on the right."""
    generator = torch.Generator().manual_seed(seed)
    planes = torch.rand(channels, side, side, generator=generator) > 0.6
    present = torch.ones(side, side, dtype=torch.bool)
    present[:, 3 * side // 4 :] = False
    return planes.float() * present, planes, present


@given(seed=st.integers(0, 2**31), channels=st.sampled_from([1, 2, 3, 4, 13]), name=st.sampled_from(GEOMETRY))
def test_image_planes_and_presence_move_together(seed: int, channels: int, name: str) -> None:
    image, planes, present = crop(channels, 12, seed)
    torch.manual_seed(seed)
    image, planes, present = Augmentation([name])(image, planes, present, 12)
    assert torch.equal(image, (planes & present).float())
    assert present.sum() == 12 * 9  # nothing invented, nothing lost
    assert image.dtype == torch.float32 and planes.dtype == present.dtype == torch.bool
    assert type(image) is type(planes) is type(present) is torch.Tensor


def test_every_orientation_comes() -> None:
    """Flips and quarter turns give all eight, and without rotation no crop is ever turned."""
    image = torch.arange(9.0).reshape(1, 3, 3)
    planes, present = torch.zeros(0, 3, 3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool)

    def seen(*names: str) -> set[tuple[float, ...]]:
        torch.manual_seed(0)
        change = Augmentation(names)
        return {tuple(change(image, planes, present, 3)[0].flatten().tolist()) for _ in range(100)}

    assert [len(seen(*names)) for names in (("flip", "rotate"), ("flip",), ("rotate",), ("mirror",), ())] == [
        8,
        4,
        4,
        2,
        1,
    ]


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_colour_changes_channels_each_its_own_way_and_no_plane(channels: int) -> None:
    image, planes, present = crop(channels, 32)
    torch.manual_seed(1)
    changed, same_planes, same_present = Augmentation(["colour"])(image, planes, present, 32)
    assert torch.equal(same_planes, planes) and torch.equal(same_present, present)
    assert (changed[:, ~present] == 0).all()
    gains, offsets = [], []
    for before, after in zip(image[:, present], changed[:, present]):
        gain = (after[before == 1].mean() - after[before == 0].mean()).item()
        offset = after[before == 0].mean().item()
        torch.testing.assert_close(after, before * gain + offset, atol=1e-5, rtol=0)
        gains.append(gain)
        offsets.append(offset)
    assert len({round(gain, 5) for gain in gains}) == len({round(o, 5) for o in offsets}) == channels


def test_jitter_is_as_strong_as_it_says() -> None:
    image, planes, present = torch.ones(2, 8, 8), torch.zeros(0, 8, 8, dtype=torch.bool), torch.ones(8, 8).bool()
    torch.manual_seed(0)
    change = Augmentation(["colour"])
    means = torch.stack([change(image, planes, present, 8)[0].mean((1, 2)) for _ in range(2000)])
    # Value 1 becomes gain + offset: deviations 0.1 and 0.15, half of each shared by the two channels.
    assert means.std().item() == pytest.approx(np.hypot(0.1, 0.15), rel=0.1)
    assert torch.corrcoef(means.T)[0, 1].item() == pytest.approx(0.5, abs=0.1)
    noise = Augmentation(["noise"])
    strengths = [noise(image, planes, present, 8)[0].std().item() for _ in range(300)]
    assert min(strengths) >= 0 and 0.08 < max(strengths) < 0.13


def test_half_of_the_crops_become_negatives() -> None:
    image, planes, present = crop(3, 16)
    torch.manual_seed(0)
    change = Augmentation(["negative"])
    seen = [change(image, planes, present, 16) for _ in range(60)]
    negative = [torch.equal(picture, -image) for picture, _, _ in seen]
    assert all(torch.equal(picture, image) or flag for (picture, _, _), flag in zip(seen, negative))
    assert 15 < sum(negative) < 45
    assert all(torch.equal(same, planes) for _, same, _ in seen)


def test_no_name_no_change() -> None:
    image, planes, present = crop(3, 16)
    image = image + torch.randn(3, 16, 16) * present
    for one, other in zip(Augmentation()(image, planes, present, 16), (image, planes, present)):
        assert torch.equal(one, other)
    assert Augmentation().extent(16, np.random.default_rng(0)) == 16


@pytest.mark.parametrize("names", [["scale"], ["scale_wide"], ["scale_wide", "scale"]])
def test_scale_draws_the_window(names: list[str]) -> None:
    generator = np.random.default_rng(0)
    extents = [Augmentation(names).extent(300, generator) for _ in range(800)]
    low, high = SCALES[names[0]]
    assert 300 * low <= min(extents) < 300 * low * 1.05 and 300 * high * 0.95 < max(extents) <= 300 * high
    assert abs(np.mean(np.log(np.array(extents) / 300))) < 0.03  # as often larger as smaller


@pytest.mark.parametrize("side", [24, 31, 43])
def test_resized_masks_lie_on_the_resized_image(side: int) -> None:
    """The centre of a blob is the same in both, to a tenth of a pixel; masks that lean would teach a shift."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    blob = (rows - 0.45 * side) ** 2 + (columns - 0.6 * side) ** 2 < (0.3 * side) ** 2
    image, planes, _ = resize(blob[None].float(), blob[None], torch.ones(side, side, dtype=torch.bool), 32)
    grid = torch.arange(32.0)
    for axis in (1, 2):
        centres = [(plane.sum(3 - axis)[0] @ grid / plane.sum()).item() for plane in (image, planes.float())]
        assert centres[0] == pytest.approx(centres[1], abs=0.1)
    assert abs(image.sum() - planes.sum()) < 0.1 * planes.sum()


@pytest.mark.parametrize("side", [24, 43])
def test_pixels_that_mix_in_missing_ones_are_missing(side: int) -> None:
    present = torch.ones(side, side, dtype=torch.bool)
    present[:, side // 2 :] = False
    image, _, small = Augmentation(["scale"])(
        torch.where(present, 5.0, 0.0)[None], torch.zeros(0, side, side, dtype=torch.bool), present, 32
    )
    assert 0.4 < small.float().mean() < 0.5
    assert torch.allclose(image[0][small], torch.tensor(5.0), atol=1e-3)
    assert (image[0][~small] == 0).all()


def test_unknown_name_is_an_input_error() -> None:
    with pytest.raises(InputError, match="unknown augmentation 'flips'; did you mean 'flip'"):
        Augmentation(["flips"])
    with pytest.raises(InputError, match=f"known: {', '.join(NAMES)}"):
        Augmentation(["zzz"])


def test_order_of_names_does_not_matter() -> None:
    image, planes, present = crop(3, 16)
    results = []
    for names in (("colour", "flip", "rotate"), ("rotate", "colour", "flip")):
        torch.manual_seed(4)
        results.append(Augmentation(names)(image, planes, present, 16)[0])
    assert torch.equal(*results)
