"""The frozen studies: the held-out cases of one or several run configs, each config a domain, and their digest.

As for scenes the digest is one of contents. Cases and patients bear hashes for names: the report travels to MLflow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from adapters.base import DomainAdapter
from pipelines.config import RunConfig
from pipelines.promotion.frozen import SHOWN, check_domains, combined, digest_of_parts, labels_digest
from pipelines.volumes.cases import LabelledCase, gather_cases, split_cases
from pipelines.volumes.evaluation import hashed
from pipelines.volumes.labels import VolumeLabels
from pipelines.volumes.patients import LearnedFrom
from pipelines.volumes.prepared import labels_of, open_case
from pipelines.volumes.source import VolumeSource


@dataclass(frozen=True)
class StudyPart:
    """One scored case. `truth` lies on the image's own grid; spacing in mm; `sha256` is that of the image's bytes."""

    domain: str
    name: str
    case: LabelledCase
    patient: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    truth: VolumeLabels
    sha256: str

    @contextmanager
    def open(self, adapter: DomainAdapter) -> Iterator[VolumeSource]:
        """The image as `adapter` sees it."""
        with open_case(self.case, adapter) as source:
            yield source


class FrozenStudies:
    """Context manager over `configs` as `adapter` reads their labels: `parts`, `digest`, `contents` (name -> digest).

    Scored are the held-out cases; of a config that holds none out, every case. InputError as the readers raise it.
    """

    NOUN: ClassVar[str] = "cases"

    def __init__(self, configs: Sequence[RunConfig], adapter: DomainAdapter) -> None:
        check_domains(configs)
        self.configs = list(configs)
        self.adapter = adapter
        self.parts: list[StudyPart] = []
        self.contents: dict[str, str] = {}

    def __enter__(self) -> Self:
        for config in self.configs:
            for one in _scored(config):
                self._read(config.name, one)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open: a volume is read when it is predicted."""

    @property
    def digest(self) -> str:
        """sha256 over the contents, in hex; names and the order of cases do not matter."""
        return combined(self.contents)

    def digest_of(self, domain: str) -> str:
        """The same of one config's cases."""
        return combined(self.contents, domain)

    def learned(self, provenance: Mapping[str, Any]) -> str:
        """In words, the cases whose image or patient the model with this provenance has learned from; empty: none."""
        known = LearnedFrom(provenance)
        found = [part.name for part in self.parts if known.knows(part.sha256, part.case.case.patient)]
        if not found:
            return ""
        return f"{len(found)} of the {len(self.parts)} cases or on other images of their patients ({', '.join(found)})"

    def _read(self, domain: str, one: LabelledCase) -> None:
        with open_case(one, self.adapter) as source:
            digest = source.digest()
            name = f"{domain}/{digest[:SHOWN]}"
            self.contents[name] = digest_of_parts(digest, labels_digest(one.labels), asdict(one.options))
            truth = labels_of(one, source, self.adapter)
            spacing = tuple(float(side) for side in source.geometry.spacing)
            owner = hashed(one.case.patient)
            self.parts.append(StudyPart(domain, name, one, owner, tuple(source.shape), spacing, truth, digest))


def _scored(config: RunConfig) -> Sequence[LabelledCase]:
    cases = gather_cases(config)
    asked = config.split.folds is None or config.split.fold is not None
    held = split_cases(cases, config.split, config.split.fold).test if asked else ()
    return held or cases
