"""Which precision the processor at hand is fast in."""

import torch

import passes_mtl


def has_fast_bf16(use_cpu: bool = False) -> bool:
    """Returns whether the device that training would use multiplies bfloat16 in hardware.

    Args:
        use_cpu: Whether training stays on the CPU although there is an accelerator.
    """
    accelerator = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    return passes_mtl.has_fast_bf16(torch.device("cpu") if accelerator is None else accelerator)
