"""Rule `finite`: no NaN and no infinity, neither in the weights nor in anything the model gives for real pixels.

The weights are looked at here; the outputs of every later rule are watched as they are made (`outputs.NotFinite`).
"""

from __future__ import annotations

import torch
from torch import nn

from pipelines.promotion.policy import Verdict

RULE = "finite"


def check_weights(network: nn.Module) -> Verdict:
    """Every floating-point tensor of the network is finite."""
    bad = [
        f"{name} ({int((~torch.isfinite(tensor)).sum())} of {tensor.numel()})"
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        return Verdict(RULE, False, f"weights are NaN or infinite: {bad[0]}{more}", {"tensors": len(bad)})
    return Verdict(RULE, True, "weights and outputs are finite")
