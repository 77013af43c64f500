"""The ranks of one training run: torchrun starts them, gloo or NCCL joins them; without torchrun there is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest

import torch
from torch import Tensor
from torch import distributed as dist

from stablerep.config import UserError

BUCKET_BYTES = 32 * 2**20  # of gradients in one collective: long enough to run at the wire's rate, little memory


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def world() -> dist.ProcessGroup | None:
    """The group of all ranks; None where there is one rank."""
    return dist.group.WORLD if world_size() > 1 else None


@contextmanager
def start(device: str) -> Iterator[torch.device]:
    """Join the other ranks, where torchrun started any, and give this rank's device.

    device is `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: device asks for CUDA and there is none, or is no device at all.
    """
    chosen = _device(device)
    joins = dist.is_torchelastic_launched() and not dist.is_initialized()
    if joins:
        if chosen.type == "cuda":
            chosen = torch.device("cuda", dist.get_node_local_rank())
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        yield chosen
    finally:
        if joins:
            dist.destroy_process_group()


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over ranks, in place; without gradient."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def all_true(value: bool, device: torch.device) -> bool:
    """Whether it is true on every rank. Waits for the device and the other ranks."""
    flag = torch.tensor(float(value), device=device)
    return bool(mean_over_ranks(flag) == 1)


def average_gradients(weights: Iterable[Tensor]) -> None:
    """The mean over ranks of the gradients of weights, in place; every rank has a gradient of the same ones."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    bucket: list[Tensor] = []
    for gradient, following in zip_longest(gradients, gradients[1:]):
        bucket.append(gradient)
        full = sum(each.nbytes for each in bucket) >= BUCKET_BYTES
        if full or following is None or following.dtype != gradient.dtype:
            joined = mean_over_ranks(torch.cat([each.reshape(-1) for each in bucket]))
            for each, mean in zip(bucket, joined.split([each.numel() for each in bucket]), strict=True):
                each.copy_(mean.view(each.shape))
            bucket = []


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is unknown; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name} is not on this machine ({torch.cuda.device_count()} GPUs); use --device cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    return device
