"""Two CUDA streams: batches are painted on one; on the other, those painted before are encoded and come down."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from stablerep.generate.cuda import Tensors

Result = TypeVar("Result")


class Overlap(Generic[Result]):
    """Runs bring(painted) in a thread of its own, on a stream of its own; on the CPU only in the thread.

    Memory needs no record_stream: what was painted is held until bring has waited for its stream.
    """

    def __init__(self, device: torch.device, bring: Callable[[Tensors], Result]) -> None:
        on_cuda = device.type == "cuda"
        self._device, self._bring = device, bring
        self._painting = torch.cuda.Stream(device) if on_cuda else None
        self._bringing = torch.cuda.Stream(device) if on_cuda else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stablerep-bring")

    def __call__(self, paint: Callable[[], Tensors]) -> Future[Result]:
        """Launch paint and return at once; what bring makes of it comes later."""
        if self._painting is None:
            return self._thread.submit(self._bring, paint())
        self._painting.wait_stream(torch.cuda.current_stream(self._device))  # there the prompts were encoded
        with torch.cuda.stream(self._painting):
            outputs = paint()
            painted = torch.cuda.Event()
            painted.record()
        return self._thread.submit(self._after, painted, outputs)

    def _after(self, painted: torch.cuda.Event, outputs: Tensors) -> Result:
        assert self._bringing is not None
        with torch.cuda.device(self._device), torch.cuda.stream(self._bringing):
            self._bringing.wait_event(painted)
            return self._bring(outputs)
