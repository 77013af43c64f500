"""What a picture costs in arithmetic, and what a device can do at most: their ratio is the utilisation (MFU)."""

from __future__ import annotations

import copy

import torch
from torch import nn

# Dense bfloat16 by data sheet, in 1e12 a second; the first name that the device's own contains counts.
PEAK_TFLOPS = (
    ("GB300", 2500.0),
    ("GB200", 2500.0),
    ("B300", 2250.0),
    ("B200", 2250.0),
    ("GH200", 989.4),
    ("H200", 989.4),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.5),
    ("H100", 989.4),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 311.9),
    ("A800", 311.9),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)


def peak_flops(device: torch.device) -> float | None:
    """What a device does at most in bfloat16, a second; None of one that is not in the table (every CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * tflops for part, tflops in PEAK_TFLOPS if part in name), None)


def flops_of(encoder: nn.Module, head: nn.Module | None, image_size: int) -> float:
    """Of a training step, a picture: three times the forward pass of encoder (on a copy without storage) and head.

    What gradient caching or checkpointing computes again is not counted, as MFU wants it.
    """
    from torch.utils.flop_counter import FlopCounterMode

    # eval: the BatchNorms that look at all ranks would ask them about a tensor without storage.
    # No gradient: the counter expects a graph behind a module that is handed a weight (SigLIP's pooling).
    copied = copy.deepcopy(encoder).to("meta").eval().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copied(torch.empty(2, 3, image_size, image_size, device="meta"))
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)] if head is not None else []
    of_head = 2 * sum(layer.weight.numel() for layer in layers)
    return 3 * (counter.get_total_flops() / 2 + of_head)
