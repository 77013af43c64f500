"""More ranks than any machine of ours has: the loss and its gradient rank by rank, in one process."""

from __future__ import annotations

import pytest
import torch

from benchmarks.many_ranks import plan
from stablerep import ops
from stablerep.ops.contrastive import batch


@pytest.mark.parametrize("world_size", [64, 1024])
def test_the_loss_of_many_ranks_is_that_of_one(world_size: int) -> None:
    """What each would compute of what all would gather; captions span ranks, as batches are dealt to them."""
    torch.manual_seed(0)
    rows, labels = torch.randn(2048, 8), torch.arange(2048) // 6
    alone = rows.clone().requires_grad_()
    expected = ops.multi_positive_loss(alone, labels, 0.1, impl="tiled")
    expected.backward()

    mine = len(rows) // world_size
    inverse_norm, captions = batch.inverse_norm(rows), batch.captions_of(labels)
    starts = range(0, len(rows), mine)
    lse = torch.cat(
        [torch.ops.stablerep.multi_positive_lse(rows, inverse_norm, first, mine, 10.0, "tiled") for first in starts]
    )
    gradients = []
    for first in starts[:: world_size // 32]:  # every one of them gathers the same
        features = rows[first : first + mine].clone().requires_grad_()
        loss = torch.ops.stablerep.multi_positive_loss(
            features, rows, inverse_norm, *captions, lse, first, world_size, 10.0, "tiled"
        )
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        loss.backward()
        assert alone.grad is not None and features.grad is not None
        gradients.append((features.grad / world_size, alone.grad[first : first + mine]))  # the mean over ranks
    ours, theirs = (torch.cat(column) for column in zip(*gradients, strict=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()) + 1e-9)


def test_the_plan_counts_what_the_loss_gathers() -> None:
    lines = {line.what: line for line in plan(1024, 384)}
    assert lines["gather features (bfloat16)"].megabytes == pytest.approx(1024 * 384 * 256 * 2 / 1e6)
    assert lines["encoder, forward and backward"].milliseconds == pytest.approx(101.4, rel=1e-2)
