"""The labelled scenes of a run config: opened, read, and split by place."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from adapters.base import Annotation, DomainAdapter
from adapters.errors import InputError
from pipelines.annotations import read_annotations
from pipelines.config import SAMPLE, DataItem, RunConfig
from pipelines.samples import fetch
from pipelines.sources import open_for
from pipelines.splits import Place, Split, split_by_place


@dataclass(frozen=True)
class LabelledScene:
    """A scene and all its labels on its own canvas."""

    item: DataItem
    path: Path
    labels: Path
    source: Any
    annotations: Any

    @property
    def box_labels(self) -> bool:
        """Whether the labels are boxes: then masks are an assumption and boxes are what can be scored."""
        return bool(self.annotations.report.get("boxes"))


class LabelledData:
    """Context manager over the scenes of `config`, with the split. Raises InputError as the readers do."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.adapter = load_adapter(config)
        self.scenes: list[LabelledScene] = []
        self._stack = ExitStack()

    def __enter__(self) -> LabelledData:
        try:
            self.scenes = [self._open(item) for item in self.config.data]
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def split(self) -> Split:
        shapes = [scene.source.shape for scene in self.scenes]
        return split_by_place(self.config.data, shapes, self.config.split)

    def view(self, place: Place) -> tuple[Any, Annotation]:
        """The pixels and the labels of one place, both on the place's own canvas."""
        scene = self.scenes[place.item]
        return scene.source.view(place.window), scene.annotations.read(place.window)

    def _open(self, item: DataItem) -> LabelledScene:
        if item.labels is None:
            raise InputError(f"{item.source}: has no `labels`; training and evaluation need them")
        path, labels = resolve(item.source), resolve(item.labels)
        source = self._stack.enter_context(open_for(path, self.adapter))
        annotations = read_annotations(labels, source, self.adapter, item.label_options)
        return LabelledScene(item, path, labels, source, annotations)


def load_adapter(config: RunConfig) -> DomainAdapter:
    """The config's adapter, inline or from its JSON file. Raises InputError."""
    if isinstance(config.adapter, str):
        return DomainAdapter.load(config.adapter)
    return DomainAdapter.from_dict(config.adapter)


def resolve(reference: str) -> Path:
    """A local path as it is; `sample:NAME/MEMBER` fetched from its published package."""
    if not reference.startswith(SAMPLE):
        return Path(reference)
    name, _, member = reference.removeprefix(SAMPLE).partition("/")
    members = fetch(name)
    if member not in members:
        raise InputError(f"{reference}: no such file in the sample; it has {', '.join(sorted(members))}")
    return members[member]
