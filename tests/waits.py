"""A counter of what would make the host wait for a device, for tests that run without one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts what on a GPU would make the host wait for the device, or copy between them."""

    NAMES = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "_unique2", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.name().removeprefix("aten::").partition(".")[0]
        masked = name in ("index", "index_put") and any(_is_mask(index) for index in args[1])
        copied = name == "_to_copy" and kwargs.get("device") is not None
        self.counts[name] += name in self.NAMES or masked or copied
        return function(*args, **kwargs)


def _is_mask(index: Any) -> bool:
    """Indexing with one asks how many it selects."""
    return index is not None and index.dtype in (torch.bool, torch.uint8)
