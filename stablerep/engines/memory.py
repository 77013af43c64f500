"""One word for "it does not fit": every library has its own, and the painter knows torch's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

# ONNX Runtime: "Failed to allocate memory for requested buffer", "bad_alloc", BFCArena; TensorRT: OutOfMemory; torch's
# allocator on the CPU: "can't allocate memory"; oneDNN beneath it, of a convolution that fits with fewer rows: "could
# not create a primitive"; CUDA and cuBLAS beneath them all.
SAID = re.compile(
    r"out of memory|out_of_memory|OutOfMemory|bad_alloc|bad allocation|BFCArena|(failed to|can't|cannot) allocate"
    r"|cudaErrorMemoryAllocation|ALLOC_FAILED|could not create a (primitive|memory)",
    re.IGNORECASE,
)


@contextlib.contextmanager
def out_of_memory_is_torch_s() -> Iterator[None]:
    """Within, whatever says that memory ran out becomes torch.OutOfMemoryError, which halves the batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a library's own class, or a bare RuntimeError: only the words tell
        if not isinstance(error, MemoryError) and not SAID.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise torch.OutOfMemoryError(reason) from error.with_traceback(None)  # whose frames hold the batch
