"""The ranks of one training run: torchrun starts them, gloo or NCCL joins them; without torchrun there is one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import zip_longest

import torch
from torch import Tensor
from torch import distributed as dist

from stablerep.config import UserError

LOST_RANK = timedelta(minutes=10)  # more than a checkpoint takes; one that dies is noticed at once, by its connection
SPEAKING_SECONDS = 2.0
BUCKET_BYTES = 32 * 2**20  # of gradients in one collective: long enough to run at the wire's rate, little memory

log = logging.getLogger("stablerep.train")


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

    An error that ends a rank is said once: by the rank that met it first, with its name.

    Raises:
        UserError: device asks for CUDA and there is none, or is no device at all.
        SystemExit: another rank has ended, or has said the same UserError already.
    """
    if dist.is_initialized() or not dist.is_torchelastic_launched():
        chosen = _device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        yield chosen
        return
    store, number, size = next(dist.rendezvous("env://"))
    # torchrun keeps its store when it starts ranks again: addresses of those that died must not be found there.
    store = dist.PrefixStore(f"stablerep/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{size}", store)
    failed = False
    try:
        chosen = _device(device)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", dist.get_node_local_rank())
            torch.cuda.set_device(chosen)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=LOST_RANK)
        yield chosen
    except Exception as error:
        failed = True
        _say_once(store, number, error)
        raise
    finally:
        if (
            dist.is_initialized() and not failed
        ):  # taking it down may wait for ranks that are gone; we are about to leave
            dist.destroy_process_group()


def _say_once(store: dist.Store, number: int, error: Exception) -> None:
    """Return on the rank that is to speak of an error; SystemExit on the others, whose errors follow from it."""
    try:
        first = store.add("ended", 1) == 1
    except dist.DistError:  # the store has gone with the first rank's node
        first = False
    if first and not isinstance(error, UserError):
        lines = str(error).strip().splitlines() or [""]
        log.error(
            "rank %d on %s ended first, with %s: %s", number, os.uname().nodename, type(error).__name__, lines[-1]
        )
    if not first:
        time.sleep(SPEAKING_SECONDS)  # torchrun ends all ranks as soon as one has left
        raise SystemExit(2 if isinstance(error, UserError) else 1) from error


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
