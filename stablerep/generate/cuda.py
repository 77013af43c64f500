"""CUDA graphs, streams, and the copies between host and device while pictures are painted.

A graph is a whole batch, every step of the loop, the VAE, pixels and their quality: one launch instead of thousands. It
changes no byte: it launches the kernels that the same call launches without it. What comes twice in a row is captured,
so that a small run or the odd last batch of a shard pays for nothing; the first time is the warm-up.

On the CPU there are no graphs and no streams, and copies are none.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from stablerep.engines import Engine

MOST_GRAPHS = 2  # with and without guidance; each holds its batch's working memory

log = logging.getLogger("stablerep.generate")


class Tensors(Protocol):
    """A dataclass of tensors, always the same ones in the same order."""

    def tensors(self) -> list[Tensor]: ...

    def map(self: T, function: Callable[[Tensor], Tensor]) -> T: ...


T = TypeVar("T", bound=Tensors)
Inputs = TypeVar("Inputs", bound=Tensors)
Outputs = TypeVar("Outputs", bound=Tensors)
Result = TypeVar("Result")


@dataclass(frozen=True)
class CapturedGraph(Generic[Inputs, Outputs]):
    """One call with its memory: replay reads inputs and writes outputs, the same addresses each time."""

    inputs: Inputs
    outputs: Outputs
    replay: Callable[[], None]


class GraphCache:
    """The graphs of one painter, by the shapes of what goes in.

    What is called reads nothing that changes but its inputs, and asks the device nothing.
    """

    def __init__(
        self, engine: Engine, why_not: str | None, capture: Callable[..., CapturedGraph] | None = None
    ) -> None:
        self._engine = engine
        self._capture = capture or CudaCapture()
        self._graphs: OrderedDict[Hashable, CapturedGraph[Any, Any]] = OrderedDict()
        self._last: Hashable = None
        self._off = self._memory_note_logged = False
        if why_not:
            self._stop(why_not)

    @torch.inference_mode()
    def __call__(self, call: Callable[[Engine, Inputs], Outputs], inputs: Inputs, *, key: Hashable = None) -> Outputs:
        """call(engine, inputs), in fresh memory; key is what else decides which kernels run."""
        key = key, *((tuple(tensor.shape), tensor.dtype) for tensor in inputs.tensors())
        if not self._off and key == self._last and key not in self._graphs:
            self._add(key, call, inputs)
        self._last = key
        graph = self._graphs.get(key)
        if graph is None:
            return call(self._engine, inputs)
        self._graphs.move_to_end(key)
        for static, tensor in zip(graph.inputs.tensors(), inputs.tensors(), strict=True):
            static.copy_(tensor)
        graph.replay()
        # Fresh memory: the next replay writes over outputs while this batch is still being encoded.
        return graph.outputs.map(torch.clone)

    def free_memory(self) -> bool:
        """Free all graphs; whether there were any. They are captured again as they are needed."""
        held, self._last = list(self._graphs), None
        for key in held:
            self._remove(key)
        if held and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if held and not self._memory_note_logged:
            self._memory_note_logged = True
            log.info("a batch of another size needs the memory of the CUDA graphs; a smaller --batch-size holds both")
        return bool(held)

    def _add(self, key: Hashable, call: Callable[[Engine, Inputs], Outputs], inputs: Inputs) -> None:
        while len(self._graphs) >= MOST_GRAPHS:
            self._remove(next(iter(self._graphs)))
        try:
            static = inputs.map(torch.clone)
            engine = self._engine.with_own_context()
            if engine is not self._engine:
                call(engine, static)  # TensorRT settles a new shape in its first run, in ways that no graph can hold
            self._graphs[key] = self._capture(partial(call, engine), static)
        except Exception as error:  # the same call has just worked, so it is the capturing, memory's and TensorRT's too
            self._stop(f"capturing one failed ({' '.join(str(error).split())[:200]})", logging.WARNING)

    def _stop(self, reason: str, level: int = logging.INFO) -> None:
        self._off = True
        for key in list(self._graphs):
            self._remove(key)
        log.log(level, "batches are painted without CUDA graphs: %s", reason)

    def _remove(self, key: Hashable) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # it may still run
        del self._graphs[key]


class CudaCapture:
    """Captures on the current stream, which must not be the default one; its graphs share one private memory pool.

    They may: they run one after another on one stream, and outputs are copied away before the next one runs.
    """

    def __init__(self) -> None:
        self._pool: tuple[int, int] | None = None

    def __call__(self, call: Callable[[Inputs], Outputs], inputs: Inputs) -> CapturedGraph[Inputs, Outputs]:
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
        return CapturedGraph(inputs, outputs, graph.replay)


class StreamOverlap(Generic[Outputs, Result]):
    """Two CUDA streams: batches are painted on one; on the other, in a thread of its own, download encodes those
    painted before and brings them to the host. On the CPU there is only the thread.

    Memory needs no record_stream: what was painted is held until download has waited for its stream.
    """

    def __init__(self, device: torch.device, download: Callable[[Outputs], Result]) -> None:
        on_cuda = device.type == "cuda"
        self._device, self._download = device, download
        self._painting = torch.cuda.Stream(device) if on_cuda else None
        self._downloading = torch.cuda.Stream(device) if on_cuda else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stablerep-download")

    def submit(self, paint: Callable[[], Outputs]) -> Future[Result]:
        """Launch paint and return at once; what download makes of it comes later."""
        if self._painting is None:
            return self._thread.submit(self._download, paint())
        self._painting.wait_stream(torch.cuda.current_stream(self._device))  # there the prompts were encoded
        with torch.cuda.stream(self._painting):
            outputs = paint()
            painted = torch.cuda.Event()
            painted.record()
        return self._thread.submit(self._download_after, painted, outputs)

    def _download_after(self, painted: torch.cuda.Event, outputs: Outputs) -> Result:
        assert self._downloading is not None
        with torch.cuda.device(self._device), torch.cuda.stream(self._downloading):
            self._downloading.wait_event(painted)
            return self._download(outputs)


def upload(values: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting; what lies there already stays.

    torch keeps the pinned copy until the device has read it (its host allocator marks it with an event).
    """
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def upload_floats(values: Sequence[float], device: torch.device) -> Tensor:  # [B] float32
    if len(set(values)) == 1:  # filled on the device: no copy
        return torch.full((len(values),), values[0], device=device, dtype=torch.float32)
    return upload(torch.tensor(values, dtype=torch.float32), device)


def download(tensors: Sequence[Tensor]) -> list[Tensor]:
    """To the host, in pinned memory; waits for the current stream, which is the only wait of painting."""
    if not tensors[0].is_cuda:
        return list(tensors)
    on_host = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(on_host, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # the thread sleeps; spinning would take a core from the others
    copied.record()
    copied.synchronize()
    return on_host
