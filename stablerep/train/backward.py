"""From a batch to the gradient of every weight: on one rank or many, at once or in micro-batches."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stablerep import atomic, distributed
from stablerep.data.loader import Batch
from stablerep.train import gradient_cache, memory, parallel
from stablerep.train.acceleration import refuse_compiler_error

RECORD = "micro_batch_size"  # what a run found to fit, in its folder

log = logging.getLogger("stablerep.train")


class Backward:
    """loss = backward(batch): leaves the gradient of the loss of the whole batch of all ranks in the weights.

    A batch that does not fit into memory is encoded in micro-batches, halved until they fit; the run keeps their size.

    Args:
        objective: an objective of objectives.py.
        micro_batch_size: pictures that a rank encodes at once; 0: what the run has found to fit, or all.
    """

    def __init__(self, objective: nn.Module, device: torch.device, micro_batch_size: int, out: Path) -> None:
        self._objective, self._device, self._record = objective, device, out / RECORD
        self.micro_batch_size = micro_batch_size or _read(self._record)  # 0: all at once
        self._forward: nn.Module | None = None  # over ranks; made with the first batch
        self._splits = gradient_cache.why_not(objective) is None

    def __call__(self, batch: Batch) -> Tensor:  # [] this rank's part of the loss
        ranks = distributed.world_size()
        if self._forward is None:
            sharded = parallel.is_sharded(self._objective)  # whose forward has collectives: nothing can be tried
            while ranks > 1 and self._splits and not sharded and not self._fits_on_all(batch):
                self._halve(batch)
            plain = ranks == 1 or sharded or not self._is_whole(batch)
            self._forward = self._objective if plain else over_ranks(self._objective, self._device)
        seed = torch.initial_seed()
        while True:
            try:
                return self._once(batch)
            except RuntimeError as error:
                refuse_compiler_error(error)
                # On several ranks the others wait in a collective already: all that can be done was done before.
                if ranks > 1 or not self._splits or self._rows(batch) == 1 or not memory.ran_out(error):
                    raise
            self._halve(batch)  # not above, where the error still holds what was allocated
            torch.manual_seed(seed)

    def _once(self, batch: Batch) -> Tensor:
        assert self._forward is not None
        if self._is_whole(batch):
            loss = self._forward(batch)
            loss.backward()
            return loss.detach()
        parallel.synchronise_gradients(self._objective, False)
        loss = gradient_cache.backward(
            self._objective,  # type: ignore[arg-type]
            batch,
            self._rows(batch),
            before_last=lambda: parallel.synchronise_gradients(self._objective, True),
        )
        if distributed.world_size() > 1 and not parallel.is_sharded(self._objective):
            distributed.average_gradients(self._objective.parameters())
        return loss

    def _rows(self, batch: Batch) -> int:
        rows = len(batch.labels)  # others than when the size was found, if the run goes on with other ranks
        return gradient_cache.divisor_up_to(rows, self.micro_batch_size or rows)

    def _is_whole(self, batch: Batch) -> bool:
        return self._rows(batch) >= len(batch.labels)

    def _fits_on_all(self, batch: Batch) -> bool:
        rows = self._rows(batch)
        return rows == 1 or memory.all_can_encode(self._objective, self._objective, batch, rows)  # type: ignore[arg-type]

    def _halve(self, batch: Batch) -> None:
        self._objective.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        before, rows = self._rows(batch), len(batch.labels)
        self.micro_batch_size = gradient_cache.divisor_up_to(rows, before // 2)
        if distributed.rank() == 0:
            atomic.write(self._record, f"{self.micro_batch_size}\n")
            log.info(
                "out of memory with %d pictures at once: encoding %d at a time from here on (--micro-batch-size %d); "
                "the gradient stays that of the whole batch",
                before, self.micro_batch_size, self.micro_batch_size,
            )  # fmt: skip


def over_ranks(model: nn.Module, device: torch.device) -> nn.Module:
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def _read(record: Path) -> int:
    return int(record.read_text()) if record.exists() else 0
