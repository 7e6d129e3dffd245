"""The coil's field is found from the volume alone, and taken out where the adapter asks for it."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from adapters.base import DomainAdapter
from adapters.channels import Channel, ChannelSet
from adapters.classes import Class, ClassSet
from adapters.errors import InputError
from adapters.volume import VolumeRules
from pipelines.volumes.bias import field_of, flatten
from pipelines.volumes.source import open_volume

SHAPE = (30, 40, 24)
WHOLE = tuple(slice(0, n) for n in SHAPE)


def phantom(seed: int = 0) -> np.ndarray:
    """Three tissues in blobs, air around, noise."""
    random = np.random.default_rng(seed)
    blobs = random.integers(0, 3, (6, 8, 6)).repeat(5, 0).repeat(5, 1).repeat(4, 2)
    values = np.array([60.0, 100.0, 140.0])[blobs] + random.normal(0, 4, SHAPE)
    values[:3] = random.uniform(0, 3, (3, *SHAPE[1:]))
    return values.astype(np.float32)


def coil(strength: float = 0.6) -> np.ndarray:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return np.exp(strength * (0.7 * x - 0.5 * y * y + 0.4 * z * x)).astype(np.float32)


def test_a_field_is_found() -> None:
    plain, seen = field_of(phantom(), SHAPE)(WHOLE), field_of(phantom() * coil(), SHAPE)(WHOLE)
    tissue = phantom() > 20
    assert np.log(plain[tissue]).std() < 0.06, "nothing is made up where there is none"
    left = np.log(coil() / seen)[tissue].std()
    assert left < 0.25 * np.log(coil())[tissue].std()
    part = (slice(4, 9), slice(10, 40), slice(0, 7))
    assert np.allclose(field_of(phantom() * coil(), SHAPE)(part), seen[part], rtol=1e-5), "windows agree"
    assert np.all(field_of(np.zeros(SHAPE), SHAPE)(WHOLE) == 1)


def test_the_reader_divides_where_the_adapter_asks(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(phantom() * coil(), np.eye(4)), path)
    with open_volume(path) as source:
        flatten(source, VolumeRules())
        raw = source.read()[0][0]
        flatten(source, VolumeRules(flatten=True))
        flatten(source, VolumeRules(flatten=True))
        flat = source.read()[0][0]
        assert np.allclose(source.read((slice(5, 6), *WHOLE[1:]))[0][0], flat[5:6])
    tissue = phantom() > 20

    def spread(values: np.ndarray) -> float:
        return float(np.log(values[tissue] / phantom()[tissue]).std())

    assert spread(flat) < 0.3 * spread(raw)


def test_the_rule_travels_with_the_adapter() -> None:
    channels = ChannelSet((Channel("mr", (1,)),))
    asked = DomainAdapter("t", channels, ClassSet((Class("a"),)), volume=VolumeRules(flatten=True))
    again = DomainAdapter.from_dict(asked.to_dict())
    assert again == asked and again.volume is not None and again.volume.flatten
    assert hash(VolumeRules(flatten=True)) != hash(VolumeRules())
    with pytest.raises(InputError, match="flatten"):
        VolumeRules(flatten="yes")  # type: ignore[arg-type]
