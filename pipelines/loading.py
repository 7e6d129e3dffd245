"""Batches for training, from worker processes that leave nothing behind.

Sample indices count up without end, so the position in the data is a number: a resumed run asks for the same
indices and, as a sample depends on its index alone, sees the same samples whatever the number of workers.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from maskformer.targets import Target


class Samples(Protocol):
    """What can be trained on: see `pipelines.datasets.CropDataset`."""

    def __getitem__(self, index: int) -> tuple[Tensor, Target]: ...

    def fingerprint(self) -> str: ...


class PackedTarget(NamedTuple):
    """A Target on its way between processes: label maps in as few bytes as they need, eight valid pixels a byte.

    Tensors travel through shared memory, of which a container has 64 MB by default; arrays travel through a pipe.
    """

    labels: np.ndarray
    layers: np.ndarray
    valid: np.ndarray


def batches(
    samples: Samples, batch: int, workers: int = 0, start: int = 0, rank: int = 0, world: int = 1
) -> Generator[tuple[Tensor, list[Target]], None, None]:
    """Endless batches (images (B, C, H, W), B targets) of process `rank` of `world`, from batch `start` on.

    Close the generator (`contextlib.closing`) to end the workers.
    """
    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]  # a map-style dataset needs no more than __getitem__
        batch_sampler=_Indices(batch, start, rank, world),
        num_workers=workers,
        collate_fn=_pack if workers else _collate,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else the loader draws from the generator that dropout uses
        pin_memory=torch.cuda.is_available(),
    )
    for images, targets in loader:
        yield images, [_unpack(target) if isinstance(target, PackedTarget) else target for target in targets]


class _Indices:
    """Batch k of a process: indices (k·world + rank)·batch and the following."""

    def __init__(self, batch: int, start: int, rank: int, world: int) -> None:
        self.batch, self.start, self.rank, self.world = batch, start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        k = self.start
        while True:
            first = (k * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))
            k += 1


def _collate(items: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    return torch.stack([image for image, _ in items]), [target for _, target in items]


def _pack(items: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[PackedTarget]]:
    packed = []
    for _, target in items:
        smallest = np.min_scalar_type(len(target.labels))
        layers, valid = target.layers.numpy().astype(smallest), np.packbits(target.valid.numpy(), axis=-1)
        packed.append(PackedTarget(target.labels.numpy(), layers, valid))
    return torch.stack([image for image, _ in items]), packed


def _unpack(packed: PackedTarget) -> Target:
    layers = torch.from_numpy(packed.layers.astype(np.int32))
    valid = np.unpackbits(packed.valid, axis=-1, count=layers.shape[-1]).astype(bool)
    return Target(torch.from_numpy(packed.labels), layers, torch.from_numpy(valid))


def _begin_worker(worker: int) -> None:
    """Leave the parent's signals and the parent's exit hooks to the parent.

    Ctrl-C and a service manager's SIGTERM reach every process of the group. A worker that died of it would
    take the step in flight with it; the parent saves first, then ends its workers itself.
    Exit hooks of threads (Prefect registers some) fail in a fork, which has none of those threads: the worker would end
    with exit code 1, and torch would raise that in the parent in the middle of whatever it does then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    getattr(threading, "_threading_atexits", []).clear()
