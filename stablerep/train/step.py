"""A step, from a batch to updated weights: kernel by kernel, or with --cuda-graph all in one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stablerep import distributed
from stablerep.config import UserError
from stablerep.data.loader import Batch
from stablerep.train.backward import Backward
from stablerep.train.config import TrainConfig
from stablerep.train.optimiser import Update, apply_gradients, set_learning_rate

# Eager steps before the capture: they compile, choose kernels, and allocate moments and workspaces, which no graph can.
WARM_UP = 3

log = logging.getLogger("stablerep.train")

Result = tuple[Tensor, Update]  # loss [], and what became of the update
Replay = Callable[[], None]


class Step:
    """loss, update = step(batch, lr). Never waits for the device."""

    def __init__(self, backward: Backward, optimiser: torch.optim.AdamW) -> None:
        self.backward, self.optimiser = backward, optimiser

    def __call__(self, batch: Batch, lr: float) -> Result:
        set_learning_rate(self.optimiser, lr)
        return self.launch(batch)

    def launch(self, batch: Batch) -> Result:
        return self.backward(batch), apply_gradients(self.optimiser)


class GraphedStep:
    """A Step whose kernels are launched as one CUDA graph: the host spends microseconds on it, not the milliseconds
    that a thousand launches take. The first steps are eager; one of them becomes the graph.

    What a step changes lies where it lay when it was captured: weights, moments, the learning rate (a tensor), the
    state of the random generator, which torch sets anew at each replay. The batch is copied to where the graph reads
    it. A replay computes what the eager step does, with the same kernels.
    """

    def __init__(self, step: Step, capture: Callable[[Callable[[], Result]], tuple[Replay, Result]]) -> None:
        self._step, self._capture = step, capture
        self._eager_steps = 0
        self._graph: tuple[Batch, Replay, Result] | None = None

    def __call__(self, batch: Batch, lr: float) -> Result:
        """The tensors of the result are written over by the next step."""
        if self._graph is None:
            if self._eager_steps < WARM_UP or self._step.backward.micro_batch_size:
                return self._eager(batch, lr)
            self._graph = self._captured(batch)
        static, replay, result = self._graph
        static.copy_(batch)
        set_learning_rate(self._step.optimiser, lr)
        replay()
        return result

    def _eager(self, batch: Batch, lr: float) -> Result:
        result = self._step(batch, lr)
        self._eager_steps += 1
        if self._eager_steps == WARM_UP and self._step.backward.micro_batch_size:
            log.info("no --cuda-graph: the batch is encoded in micro-batches, each with random numbers of its own")
        return result

    def _captured(self, batch: Batch) -> tuple[Batch, Replay, Result]:
        static = batch.clone()
        try:
            with _capturable(self._step.optimiser):
                replay, result = self._capture(lambda: self._step.launch(static))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"--cuda-graph: this step cannot be captured ({reason}); leave it out") from error
        return static, replay, result


def open_step(config: TrainConfig, backward: Backward, optimiser: torch.optim.AdamW, device: torch.device) -> (
    Step | GraphedStep
):  # fmt: skip
    step = Step(backward, optimiser)
    if not config.cuda_graph:
        return step
    if device.type != "cuda":
        raise UserError(f"--cuda-graph needs a CUDA GPU, and this run is on the {device.type}; leave it out")
    if distributed.world_size() > 1:
        raise UserError(
            f"--cuda-graph is for one GPU, and there are {distributed.world_size()} ranks, whose collectives it does "
            "not hold; leave it out"
        )
    return GraphedStep(step, _capture)


def _capture(launch: Callable[[], Result]) -> tuple[Replay, Result]:
    graph = torch.cuda.CUDAGraph()
    # thread_local: the loader's thread may allocate and wait meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = launch()
    return graph.replay, result


@contextmanager
def _capturable(optimiser: torch.optim.AdamW) -> Iterator[None]:
    """torch asks for this mark; with fused kernels it changes nothing else, so checkpoints are not to hold it."""
    for group in optimiser.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in optimiser.param_groups:
            group["capturable"] = False
