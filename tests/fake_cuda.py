"""A CUDA device of shapes, dtypes and devices alone: what runs there computes nothing, and is checked for each mistake
that needs no numbers to be seen. Our own kernels are there what torch.library knows of them (register_fake).

Autograd cannot go backward there: its engine asks the driver for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that waits for the device, and every copy from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.split(".")[0]
        assert name not in WAITS, f"{name} waits for the device"
        if name == "_fused_adamw_":  # nothing fake is registered for it: each list is that of the weights
            weights, *others = args[:4]
            assert all(
                [(each.shape, each.device) for each in like] == [(w.shape, CUDA) for w in weights] for like in others
            )
            self.launched.append(name)
            return None
        results = function(*args, **(kwargs or {}))
        if "copy" in name:
            devices = {each.device.type for each in tree_leaves((args, kwargs, results)) if isinstance(each, Tensor)}
            assert len(devices) == 1, f"{name} copies between {sorted(devices)}"
        self.launched.append(name)
        return results


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Within, tensors are made and used without any memory; autocast believes that the GPU is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
        with FakeTensorMode(allow_non_fake_inputs=False):
            yield


def move(module: nn.Module) -> dict[Tensor, Tensor]:
    """Bring a module there; each parameter and what has taken its place."""
    moved: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight not in moved:
                moved[weight] = nn.Parameter(there(weight), weight.requires_grad)
            if weight is not None:
                part._parameters[name] = moved[weight]  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = there(buffer)
    return moved


def there(tensor: Tensor) -> Tensor:
    """Its like; empty_like would be an operation on what is not there."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
