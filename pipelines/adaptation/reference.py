"""What a model remembers of its training data when training ends: enough to tell later how far other data are.

Batch norms get the training data's statistics (their outputs stay), and the bundle's provenance a few numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from adapters.base import DomainAdapter
from pipelines.adaptation.norm_statistics import restate
from pipelines.adaptation.target import padded
from pipelines.loading import Samples

CROPS = 32


def remember(model: nn.Module, samples: Samples, adapter: DomainAdapter, count: int = CROPS) -> dict[str, Any]:
    """Restate the model's norms on `count` samples of its training data; what the bundle's provenance keeps of them.

    samples: as they were trained on, but not augmented, and drawn evenly over the ground.
    """
    from pipelines.drift.features import measure

    device = next(model.parameters()).device
    images: list[Tensor] = [padded(samples[index][0]).to(device) for index in range(count)]
    norms = restate(model, images)
    return {"crops": count, "norms": norms, **measure(model, adapter, images).summary()}
