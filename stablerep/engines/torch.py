"""The reference engine: the pipeline's own modules, channels last, attention through torch's fused kernel (SDPA).

And torch's out-of-memory error in place of every other library's.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stablerep.engines.conditioning import Conditioning
from stablerep.engines.module import Decoder, PipelineModules, Unet

# ONNX Runtime: "Failed to allocate memory for requested buffer", "bad_alloc", BFCArena; TensorRT: OutOfMemory; torch's
# allocator on the CPU: "can't allocate memory"; oneDNN beneath it, of a convolution that fits with fewer rows: "could
# not create a primitive"; CUDA and cuBLAS beneath them all.
OUT_OF_MEMORY_TEXTS = re.compile(
    r"out of memory|out_of_memory|OutOfMemory|bad_alloc|bad allocation|BFCArena|(failed to|can't|cannot) allocate"
    r"|cudaErrorMemoryAllocation|ALLOC_FAILED|could not create a (primitive|memory)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TorchEngine:
    pipeline: PipelineModules
    name: str = "torch"
    compiled: bool = False  # by torch.compile, for the rows it meets first, and then for any number of them
    why_not_capturable: ClassVar[str | None] = None

    def unet(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        with torch_out_of_memory():
            return self._unet(latents, timestep, **conditioning.inputs)

    def decode(self, latents: Tensor) -> Tensor:
        with torch_out_of_memory():
            return self._decoder(latents.to(self.pipeline.vae.dtype))

    def with_own_context(self) -> TorchEngine:
        return self

    @functools.cached_property
    def _unet(self) -> Callable[..., Tensor]:
        module = Unet(self.pipeline.unet).eval()
        return torch.compile(module) if self.compiled else module

    @functools.cached_property
    def _decoder(self) -> Callable[..., Tensor]:
        module = Decoder(self.pipeline.vae).eval()
        return torch.compile(module) if self.compiled else module


@contextlib.contextmanager
def torch_out_of_memory() -> Iterator[None]:
    """Within, whatever says that memory ran out becomes torch.OutOfMemoryError, which halves the batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a library's own class, or a bare RuntimeError: only the text tells
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY_TEXTS.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise torch.OutOfMemoryError(reason) from error.with_traceback(None)  # whose frames hold the batch
