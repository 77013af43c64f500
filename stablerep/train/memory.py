"""What a step may take of memory: how much it took, whether it ran out, and how many pictures fit at once."""

from __future__ import annotations

import resource

import torch
from torch import nn

from stablerep import distributed
from stablerep.data.loader import Batch
from stablerep.train.gradient_cache import Objective


def peak_gb(device: torch.device) -> float:
    """The most that was ever held at once: of tensors on a GPU; of the whole process on the CPU. Never waits."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def ran_out(error: RuntimeError) -> bool:
    """Whether an allocation failed, on a GPU or in torch's allocator on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def all_can_encode(model: nn.Module, objective: Objective, batch: Batch, size: int) -> bool:
    """Whether every rank can encode so many pictures at once and go back through them; gradients stay as they were.

    Without a collective inside: a rank that runs out in one leaves the others waiting for it. For gradients, their
    buckets and the optimiser's moments, which the first step allocates, as much is held meanwhile.
    """
    images, labels = batch.images[:size], batch.labels[:size]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        held = [torch.empty(3, *weight.shape, dtype=weight.dtype, device=weight.device) for weight in weights]
        features = objective.features(Batch(images, labels))
        torch.autograd.grad(features.float().sum(), weights, allow_unused=True)
        del features, held
        fits = True
    except RuntimeError as error:
        if not ran_out(error):
            raise
        fits = False
    return distributed.all_true(fits, batch.images.device)
