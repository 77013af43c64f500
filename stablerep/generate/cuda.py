"""A whole batch, every step of the loop, the VAE, pixels and marks, as one CUDA graph: one launch instead of thousands.

A graph changes no byte: it launches the kernels that the same call launches without it. What comes twice in a row is
captured, so that a small run or the odd last batch of a shard pays for nothing; the first time is the warm-up.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stablerep.engines import Engine
from stablerep.engines.select import CompiledEngine
from stablerep.generate.diffusers_schedule import DiffusersSchedule
from stablerep.generate.schedulers import Schedule

Tensors = dict[str, Tensor]
Call = Callable[[Engine, Tensors], Tensors]  # reads nothing that changes but its inputs, asks the device nothing
MOST_GRAPHS = 2  # with and without guidance; each holds its batch's working memory

log = logging.getLogger("stablerep.generate")


@dataclass(frozen=True)
class Captured:
    """One call with its memory: replay reads inputs and writes outputs, the same addresses each time."""

    inputs: Tensors
    outputs: Tensors
    replay: Callable[[], None]


Capture = Callable[[Callable[[Tensors], Tensors], Tensors], Captured]


def why_not(engine: Engine, schedule: Schedule | DiffusersSchedule) -> str | None:
    """Why batches cannot be captured, as far as that is known before trying."""
    if isinstance(schedule, DiffusersSchedule):
        return "diffusers' own scheduler objects compute on the host between the steps"
    if engine.name == "onnx":
        return "ONNX Runtime keeps the order of its stream itself"
    return None


class Graphs:
    """The graphs of one painter, by the shapes of what goes in."""

    def __init__(self, engine: Engine, why_not: str | None, capture: Capture | None = None) -> None:
        self._engine = engine
        self._capture = capture or CudaCapture()
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._last: Hashable = None
        self._off = self._told = False
        if why_not:
            self._stop(why_not)

    @torch.inference_mode()
    def __call__(self, call: Call, inputs: Tensors, *, key: Hashable = None) -> Tensors:
        """call(engine, inputs), in fresh memory; key is what else decides which kernels run."""
        key = key, *((name, tuple(value.shape), value.dtype) for name, value in inputs.items())
        if not self._off and key == self._last and key not in self._graphs:
            self._add(key, call, inputs)
        self._last = key
        captured = self._graphs.get(key)
        if captured is None:
            return call(self._engine, inputs)
        self._graphs.move_to_end(key)
        for name, value in inputs.items():
            captured.inputs[name].copy_(value)
        captured.replay()
        # Fresh memory: the next replay writes over outputs while this batch is still being encoded.
        return {name: value.clone() for name, value in captured.outputs.items()}

    def give_back(self) -> bool:
        """Free the memory of all graphs; whether there were any. They are captured again as they are needed."""
        held, self._last = list(self._graphs), None
        for key in held:
            self._forget(key)
        if held and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if held and not self._told:
            self._told = True
            log.info("a batch of another size needs the memory of the CUDA graphs; a smaller --batch-size holds both")
        return bool(held)

    def _add(self, key: Hashable, call: Call, inputs: Tensors) -> None:
        while len(self._graphs) >= MOST_GRAPHS:
            self._forget(next(iter(self._graphs)))
        try:
            own = {name: value.clone() for name, value in inputs.items()}
            engine = self._engine.alone() if isinstance(self._engine, CompiledEngine) else self._engine
            if engine is not self._engine:
                call(engine, own)  # TensorRT settles a new shape in its first run, in ways that no graph can hold
            self._graphs[key] = self._capture(partial(call, engine), own)
        except Exception as error:  # the same call has just worked, so it is the capturing, memory's and TensorRT's too
            self._stop(f"capturing one failed ({' '.join(str(error).split())[:200]})", logging.WARNING)

    def _stop(self, reason: str, level: int = logging.INFO) -> None:
        self._off = True
        for key in list(self._graphs):
            self._forget(key)
        log.log(level, "batches are painted without CUDA graphs: %s", reason)

    def _forget(self, key: Hashable) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # it may still run
        del self._graphs[key]


class CudaCapture:
    """Captures on the current stream, which must not be the default one; its graphs share one private memory pool.

    They may: they run one after another on one stream, and outputs are copied away before the next one runs.
    """

    def __init__(self) -> None:
        self._pool: tuple[int, int] | None = None

    def __call__(self, call: Callable[[Tensors], Tensors], inputs: Tensors) -> Captured:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that encodes the batch before may allocate and wait meanwhile.
        options: dict[str, Any] = {
            "pool": self._pool,
            "stream": torch.cuda.current_stream(),
            "capture_error_mode": "thread_local",
        }
        cause: Exception | None = None
        try:
            with torch.cuda.graph(graph, **options):
                try:
                    outputs = call(inputs)
                except Exception as error:
                    cause = error  # closing a broken capture raises another one over it
                    raise
        except Exception as error:
            raise cause or error from None
        return Captured(inputs, outputs, graph.replay)
