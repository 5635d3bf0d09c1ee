"""Which precision the processor at hand is fast in."""

import torch
from transformers.utils import is_torch_bf16_gpu_available


def has_fast_bf16(use_cpu: bool = False) -> bool:
    """Returns whether the device that training would use multiplies bfloat16 in hardware.

    Args:
        use_cpu: Whether training stays on the CPU although there is an accelerator.
    """
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available() and not use_cpu:
        return is_torch_bf16_gpu_available()
    # Without these instructions bf16 is emulated, and measured ten times slower than fp32.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
