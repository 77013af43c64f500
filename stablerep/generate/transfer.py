"""Where numbers cross between host and device while pictures are painted: here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def up(values: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting; what lies there already stays.

    torch keeps the pinned copy until the device has read it (its host allocator marks it with an event).
    """
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def down(tensors: Sequence[Tensor]) -> list[Tensor]:
    """To the host, in pinned memory; waits for the current stream, which is the only wait of painting."""
    if not tensors[0].is_cuda:
        return list(tensors)
    here = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(here, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    there = torch.cuda.Event(blocking=True)  # the thread sleeps; spinning would take a core from the others
    there.record()
    there.synchronize()
    return here
