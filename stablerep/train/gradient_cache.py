"""The gradient of a batch whose activations do not fit: encoded in micro-batches, with the loss of the whole.

Gradient caching (Gao et al., arXiv 2101.06983): every picture is a negative of every other, so the mean of the losses
of parts is another loss. The features of all pictures do fit; only the encoder's activations do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stablerep.config import UserError
from stablerep.data.loader import Batch

PART_SEEDS = 2_147_483_659  # a prime: parts and ranks, whose seeds are neighbours, do not meet


class Objective(Protocol):
    def features(self, batch: Batch) -> Tensor: ...
    def loss(self, features: Tensor, batch: Batch) -> Tensor: ...


def backward(
    objective: Objective, batch: Batch, micro_batch_size: int, before_last: Callable[[], None] = lambda: None
) -> Tensor:  # [] the loss
    """As objective(batch).backward(), with the activations of micro_batch_size pictures, for one more forward.

    First the features of all micro-batches without graph; then the loss and its gradient with respect to them; then
    each micro-batch again, with graph, from its rows of that gradient. The head belongs to the loss: it sees the rows
    of the whole batch at once, so that its BatchNorm has the statistics of the whole batch (of all ranks) and its
    weights their exact gradient. Random numbers (dropout, drop path) are the same in both passes of a micro-batch.

    Args:
        before_last: called before the last micro-batch, whose backward completes the encoder's gradient.
    """
    with torch.no_grad():
        features = torch.cat([objective.features(part) for part in _parts(batch, micro_batch_size)])
    features.requires_grad_()
    loss = objective.loss(features, batch)
    loss.backward()
    assert features.grad is not None
    gradients = features.grad.split(micro_batch_size)
    for part, gradient, left in zip(
        _parts(batch, micro_batch_size), gradients, reversed(range(len(gradients))), strict=True
    ):
        if left == 0:
            before_last()
        objective.features(part).backward(gradient)
    return loss.detach()


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    """The micro-batches; while one is used, torch's random numbers are its own."""
    seed = torch.initial_seed()
    for number, (images, labels) in enumerate(zip(batch.images.split(size), batch.labels.split(size), strict=True)):
        torch.manual_seed((seed + number * PART_SEEDS) % 2**63)
        yield Batch(images, labels)
    torch.manual_seed(seed)


def why_not(objective: nn.Module) -> str | None:
    """Why an objective's encoder cannot be run on parts of a batch exactly; None if it can."""
    if reason := getattr(objective, "why_not_split", None):
        return reason
    for module in objective.get_submodule("encoder").modules():
        if isinstance(module, _BatchNorm):
            return "its BatchNorm takes statistics over all pictures that it sees at once"
    return None


def check_can_split(objective: nn.Module, arch: str, micro_batch_size: int) -> None:
    """Raise a UserError if --micro-batch-size is asked where an encoder cannot be run on parts of a batch."""
    if micro_batch_size and (reason := why_not(objective)):
        raise UserError(
            f"--micro-batch-size {micro_batch_size} would train --arch {arch} otherwise, as {reason}; leave it out and "
            "give --activation-checkpointing or a smaller --batch-size, or take a vit_... or convnext_... model"
        )


def check_divides(micro_batch_size: int, batch_size: int, ranks: int) -> None:
    """Raise a UserError unless --micro-batch-size divides what a rank has of --batch-size."""
    rows = batch_size // ranks
    if micro_batch_size and rows % micro_batch_size:
        near = sorted({divisor_up_to(rows, micro_batch_size), rows // divisor_up_to(rows, rows // micro_batch_size)})
        share = f"the {rows} pictures of each of {ranks} ranks" if ranks > 1 else f"--batch-size {rows}"
        raise UserError(
            f"--micro-batch-size {micro_batch_size} does not divide {share}; use {' or '.join(map(str, near))}"
        )


def divisor_up_to(rows: int, most: int) -> int:
    """The largest divisor of rows that is at most `most`, and at least 1."""
    return next(size for size in range(max(1, min(rows, most)), 0, -1) if rows % size == 0)
