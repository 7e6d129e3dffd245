"""What the gate asks for, in numbers, and how a rule answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from adapters.errors import InputError
from pipelines.config import Strict, explain


class Policy(Strict):
    """Limits of the gate. Scores are shares from 0 to 1: 0.02 are two points."""

    margin: float = Field(0.02, ge=0, description="a domain, class or slice may lose so much of a score")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the bootstrap's bounds, one-sided")
    samples: int = Field(2000, gt=99, description="of the bootstrap over blocks")
    seed: int = 0
    least_blocks: int = Field(5, gt=1, description="with fewer, the bootstrap says nothing: the plain loss counts")
    least_objects: int = Field(50, gt=0, description="slices with fewer objects are shown, not judged")
    seam: float = Field(0.02, ge=0, description="shift of outputs at tile borders beyond the champion's")
    # Crowns after 90 s of training differ by 0.107 more at borders; with 16 px of every tile blanked it is 0.41.
    seam_alone: float = Field(0.2, ge=0, description="the same where there is no champion")
    slower: float = Field(1.25, ge=1, description="times the champion's seconds")
    fatter: float = Field(1.25, ge=1, description="times the champion's peak memory")
    memory_slack_mb: float = Field(64, ge=0, description="what the allocator may take more or less by chance")
    agreement: float = Field(0.5, ge=0, le=1, description="with the champion, on the shadow scenes")
    shadow_scenes: int = Field(3, ge=0, description="how many of the last scenes")
    shadow_side: int = Field(2048, gt=31, description="pixels a side of a larger scene that are looked at")


def load_policy(path: str | Path) -> Policy:
    """A policy from YAML. InputError in one line for what is wrong with it."""
    try:
        return Policy.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, Policy)}") from None


@dataclass(frozen=True)
class Verdict:
    """A rule's answer. `says`: in a line what was found and by how much; `numbers`: the same for machines."""

    rule: str
    passed: bool
    says: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """A score of both models that fell; `worst` is the bootstrap's bound where there is one."""

    what: str
    candidate: float
    champion: float
    worst: float | None = None

    @property
    def change(self) -> float:
        return self.candidate - self.champion

    def __str__(self) -> str:
        bound = "" if self.worst is None else f", at worst {points(self.worst)}"
        return f"{self.what} {self.champion:.3f} -> {self.candidate:.3f} ({points(self.change)}{bound})"


def points(share: float) -> str:
    """A difference of shares in points: `-3.1 points`."""
    return f"{100 * share:+.1f} points"
