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
from typing import Any, ClassVar, Protocol

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


class Frozen(Protocol):
    """What rule `data` asks of the data: of scenes (`FrozenData`) or of studies (`volumes.data.FrozenStudies`)."""

    NOUN: ClassVar[str]
    configs: list[RunConfig]
    contents: dict[str, str]

    @property
    def parts(self) -> Sequence[Any]: ...
    @property
    def digest(self) -> str: ...
    def digest_of(self, domain: str) -> str: ...
    def learned(self, provenance: Mapping[str, Any]) -> str: ...


class FrozenData:
    """Context manager over `configs` as `adapter` reads their labels: `parts`, `digest`, `contents` (name -> digest).

    Scored are the held-out places; of a config that names none, every scene whole. InputError as the readers raise it.
    """

    NOUN: ClassVar[str] = "places"

    def __init__(self, configs: Sequence[RunConfig], adapter: DomainAdapter) -> None:
        check_domains(configs)
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
        return combined(self.contents)

    def digest_of(self, domain: str) -> str:
        """The same of one config's scenes: what an evaluation by that config alone was on."""
        return combined(self.contents, domain)

    def learned(self, provenance: Mapping[str, Any]) -> str:
        """In words, how much of the scored pixels the model with this provenance has learned from; empty: nothing."""
        shared = sum(self._shared(row) for row in provenance.get("places", []))
        return f"{shared} of the pixels" if shared else ""

    def _shared(self, row: Mapping[str, Any]) -> int:
        """Pixels a place of a training shares with the scored ones."""
        if row["role"] == "test":
            return 0
        shared = 0
        for part in self.parts:
            if part.sha256 == row["sha256"]:
                sides = [
                    min(b, mine.stop) - max(a, mine.start)
                    for (a, b), mine in zip(row["window"], part.window, strict=True)
                ]
                shared += max(0, sides[0]) * max(0, sides[1])
        return shared

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
            self.contents[name] = digest_of_parts(
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
    with freeze(configs, adapter) as data:
        return data.digest


def freeze(configs: Sequence[RunConfig], adapter: DomainAdapter) -> Any:
    """A context manager over the data: scenes, or for an adapter of volumes studies."""
    if adapter.volume is None:
        return FrozenData(configs, adapter)
    from pipelines.promotion.volumes.data import FrozenStudies

    return FrozenStudies(configs, adapter)


def check_domains(configs: Sequence[RunConfig]) -> None:
    """InputError where there is no data, or two configs bear one name."""
    if not configs:
        raise InputError("promote: expected data to judge by")
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise InputError(f"promote: two data configs are named alike ({', '.join(names)}); a name is a domain")


def combined(contents: Mapping[str, str], domain: str | None = None) -> str:
    """Digest over all contents, or over one domain's; names and order do not matter."""
    chosen = (digest for name, digest in contents.items() if domain is None or name.startswith(f"{domain}/"))
    return digest_of_parts(*sorted(chosen))


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
        return digest_of_parts(*((str(file.relative_to(path)), sha256(file)) for file in files))
    if path.suffix.lower() == ".shp":
        files = sorted(path.parent.glob(f"{path.stem}.*"))
        return digest_of_parts(*((file.suffix.lower(), sha256(file)) for file in files))
    return sha256(path)


def _for(config: RunConfig, adapter: DomainAdapter) -> RunConfig:
    return config.model_copy(update={"adapter": adapter.to_dict()})


def _plain(window: tuple[slice, ...]) -> list[list[int]]:
    return [[part.start, part.stop] for part in window]


def digest_of_parts(*parts: Any) -> str:
    """sha256, in hex, of what JSON makes of them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
