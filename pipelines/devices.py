"""Which device, and in which precision: one rule for training and prediction."""

from __future__ import annotations

import torch

from adapters.errors import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """`auto` takes an accelerator where there is one. Raises InputError for a device this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not usable on this machine ({reason})") from None
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the processor multiplies it natively, else float32.

    Emulated bfloat16 is slower than float32, so "supported" is not enough: it has to be in hardware.
    """
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        native = _processor_multiplies_bfloat16()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def _processor_multiplies_bfloat16() -> bool:
    # torch.cpu.get_capabilities came with torch 2.9; an older one answers with float32.
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
