"""One frozen data set, one champion and one gate for all candidates: what the champion gives is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.bundle import Bundle, load_bundle
from pipelines.promotion.frozen import FrozenData, load_frozen
from pipelines.promotion.gate import Gate
from tests.pipelines.promotion import colours


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two domains, `north.yaml` and `south.yaml`."""
    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("north", "south"), start=1):
        colours.frozen(folder, name, seed)
    return folder


@pytest.fixture(scope="session")
def data_files(world: Path) -> list[Path]:
    return [world / "north.yaml", world / "south.yaml"]


@pytest.fixture(scope="session")
def champion(world: Path) -> Bundle:
    """Sees all but the faint fields."""
    return load_bundle(colours.bundle(world / "champion", against=colours.BLIND))


@pytest.fixture(scope="session")
def frozen(data_files: list[Path], champion: Bundle) -> Iterator[FrozenData]:
    with FrozenData(load_frozen(data_files), champion.adapter) as data:
        yield data


@pytest.fixture(scope="session")
def gate(frozen: FrozenData) -> Gate:
    return Gate(frozen)
