"""Which precision and memory layout this machine is fast in."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from wsss.errors import WsssError

MEMORY_FORMATS = ("auto", "channels_last", "contiguous")


def cpu_flags() -> frozenset[str]:
    """Feature flags of the CPU as Linux names them; empty where they can't be read."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def cpu_has_bfloat16(flags: frozenset[str] | None = None) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (elsewhere it is slower than float32)."""
    flags = cpu_flags() if flags is None else flags
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def on_gpu(accelerator: str) -> bool:
    """Whether Lightning's `accelerator` means a GPU on this machine."""
    if accelerator == "auto":
        return torch.cuda.is_available()
    return accelerator in ("gpu", "cuda")


def choose_precision(precision: str, accelerator: str) -> str:
    """Lightning's precision for the key `trainer.precision`.

    `auto` is bf16-mixed where the hardware has bfloat16, else 32-true.
    """
    if precision != "auto":
        return str(precision)
    if on_gpu(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if cpu_has_bfloat16() else "32-true"


def choose_memory_format(memory_format: str) -> str:
    """`channels_last` or `contiguous` for the key `trainer.memory_format`.

    Raises:
        WsssError: an unknown value.
    """
    if memory_format not in MEMORY_FORMATS:
        raise WsssError(
            f"trainer.memory_format={memory_format}: choose {', '.join(MEMORY_FORMATS)}"
        )
    return "channels_last" if memory_format == "auto" else memory_format


def at_least_float32(values: Tensor) -> Tensor:
    """Values in float32, or as they are in float64: half precision overflows and rounds in sums."""
    return values if values.dtype == torch.float64 else values.float()
