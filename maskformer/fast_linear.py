"""Linear layers on a processor: through oneDNN, at inference with the activation in the same call.

PyTorch sends float32 matrix products to MKL, which knows AMD's processors less well than oneDNN does. Swin-T at 512 px,
float32, two cores of an AMD EPYC: 461 → 379 ms of processor time. Of a training step, forward and the gradient of the
input go to oneDNN (1.0 to 1.6 and 1.1 to 1.9 times as fast there, by shape), the gradient of the weight stays with MKL.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS = {"none": lambda x: x, "relu": torch.relu, "gelu": F.gelu}
MIN_TRAINED = 1 << 22  # multiply-adds from which on a float32 training step takes oneDNN; below, calls cost more


def fast_linear(layer: nn.Module, x: Tensor, activation: str = "none") -> Tensor:
    """activation(layer(x)), x (..., in_features); activation: "none", "relu" or "gelu" (the exact one).

    Equal to 1e-5 in float32. Captured graphs, other devices, other classes of layers and layers with hooks go the
    ordinary way. (Projections that are part of an attention's one weight are no layers: they have no hooks.)
    """
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if type(layer) is not nn.Linear or any(hooks):
        return _ACTIVATIONS[activation](layer(x))
    return fast_affine(layer.weight, layer.bias, x, activation)


def fast_affine(weight: Tensor, bias: Tensor | None, x: Tensor, activation: str = "none") -> Tensor:
    """activation(x · weightᵀ + bias): `fast_linear` for a weight (out, in) that is part of a layer."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if not _fits(weight, x, dtype):
        return _ACTIVATIONS[activation](F.linear(x, weight, bias))
    if not torch.is_grad_enabled():
        algorithm = "none" if activation == "gelu" else ""
        # Weights that `precision.prepare` has cast already are not cast again.
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, activation, [], algorithm)
    return _ACTIVATIONS[activation](_Affine.apply(x, weight, bias))  # type: ignore[no-untyped-call]


class _Affine(torch.autograd.Function):
    """x · weightᵀ + bias in float32, with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        for_x = _product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        for_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        for_bias = rows.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None
        return for_x, for_weight, for_bias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _fits(weight: Tensor, x: Tensor, dtype: torch.dtype) -> bool:
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if x.device.type != "cpu" or weight.device.type != "cpu" or not x.numel():
        return False
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    floats = {x.dtype, weight.dtype, dtype} <= {torch.float32, torch.bfloat16}
    if not torch.is_grad_enabled():
        return floats and (dtype == torch.bfloat16 or x.dtype == weight.dtype)
    whole = {x.dtype, weight.dtype, dtype} == {torch.float32}
    return whole and x.numel() * weight.shape[0] >= MIN_TRAINED
