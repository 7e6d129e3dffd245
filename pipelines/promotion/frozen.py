"""The frozen data: the held-out places of one or several run configs, each config a domain, and their digest.

The digest is one of contents (pixels, labels, how labels are read, which windows are scored), not of names or places:
data that was moved is the same data, data whose labels were corrected is other data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from adapters.base import Annotation, DomainAdapter
from adapters.errors import InputError
from pipelines.config import RunConfig, load_config
from pipelines.labelled import LabelledData
from pipelines.sinks.folder import sha256
from pipelines.sources import open_for
from pipelines.splits import Place

SHOWN = 12  # hex digits of a digest in messages and tags


@dataclass(frozen=True)
class Part:
    """One scored place. `truth` lies on the place's own canvas; `sha256` is that of the whole scene's bytes."""

    domain: str
    name: str
    path: Path
    window: tuple[slice, ...]
    shape: tuple[int, int]
    truth: Annotation
    box_labels: bool
    sha256: str

    @contextmanager
    def open(self, adapter: DomainAdapter) -> Iterator[Any]:
        """The place as `adapter` sees it."""
        with open_for(self.path, adapter) as source:
            yield source.view(self.window)


class FrozenData:
    """Context manager over `configs` as `adapter` reads their labels: `parts`, `digest`, `contents` (name -> digest).

    Scored are the held-out places; of a config that names none, every scene whole. InputError as the readers raise it.
    """

    def __init__(self, configs: Sequence[RunConfig], adapter: DomainAdapter) -> None:
        if not configs:
            raise InputError("promote: expected data to judge by")
        names = [config.name for config in configs]
        if len(set(names)) < len(names):
            raise InputError(f"promote: two data configs are named alike ({', '.join(names)}); a name is a domain")
        self.configs = list(configs)
        self.adapter = adapter
        self.parts: list[Part] = []
        self.contents: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> FrozenData:
        try:
            for config in self.configs:
                self._read(config)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def digest(self) -> str:
        """sha256 over the contents, in hex; names and the order of scenes do not matter."""
        return _digest(*sorted(self.contents.values()))

    def digest_of(self, domain: str) -> str:
        """The same of one config's scenes: what an evaluation by that config alone was on."""
        return _digest(*sorted(digest for name, digest in self.contents.items() if name.startswith(f"{domain}/")))

    def _read(self, config: RunConfig) -> None:
        data = self._stack.enter_context(LabelledData(_for(config, self.adapter)))
        places = data.split.test or [
            Place(n, tuple(slice(0, side) for side in scene.source.shape)) for n, scene in enumerate(data.scenes)
        ]
        for number, scene in enumerate(data.scenes):
            windows = [place.window for place in places if place.item == number]
            if not windows:
                continue
            name = f"{config.name}/{scene.path.name}"
            name = name if name not in self.contents else f"{name} ({number + 1})"
            digest = scene.source.digest()
            options = scene.item.label_options
            self.contents[name] = _digest(
                digest, labels_digest(scene.labels), asdict(options), [_plain(w) for w in windows]
            )
            for window in windows:
                rows, columns = (part.stop - part.start for part in window)
                truth = scene.annotations.read(window)
                part = Part(config.name, name, scene.path, window, (rows, columns), truth, scene.box_labels, digest)
                self.parts.append(part)


def load_frozen(paths: Sequence[str | Path]) -> list[RunConfig]:
    """The run configs at `paths`."""
    return [load_config(path) for path in paths]


def data_digest(configs: Sequence[RunConfig], adapter: DomainAdapter) -> str:
    """Digest of what `configs` have held out, as a model with `adapter` would be judged on it."""
    with FrozenData(configs, adapter) as data:
        return data.digest


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In words, which scenes differ between two `contents`."""
    words = [f"{name} is gone" for name in before if name not in now]
    words += [f"{name} is new" for name in now if name not in before]
    words += [
        f"{name} has other pixels, labels or windows"
        for name in now
        if name in before and now[name][:SHOWN] != before[name][:SHOWN]
    ]
    return "; ".join(words[:3]) + (f"; {len(words) - 3} more" if len(words) > 3 else "")


def labels_digest(path: Path) -> str:
    """sha256 of a label file with the files that belong to it, or of all files of a folder."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        return _digest(*((str(file.relative_to(path)), sha256(file)) for file in files))
    if path.suffix.lower() == ".shp":
        files = sorted(path.parent.glob(f"{path.stem}.*"))
        return _digest(*((file.suffix.lower(), sha256(file)) for file in files))
    return sha256(path)


def _for(config: RunConfig, adapter: DomainAdapter) -> RunConfig:
    return config.model_copy(update={"adapter": adapter.to_dict()})


def _plain(window: tuple[slice, ...]) -> list[list[int]]:
    return [[part.start, part.stop] for part in window]


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
