"""Which implementation of an op runs, and what it takes to compile one without a GPU.

"auto" decides once per op and device and says so, a named implementation runs or raises.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

WhyNot = Callable[[str], str | None]  # device type -> why an implementation cannot run there

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that native code takes, in the order of csrc/floats.h

log = logging.getLogger("stablerep.ops")


class ImplUnavailable(RuntimeError):
    """The implementation asked for cannot run here; the text says why and what can."""


@torch.compiler.assume_constant_result  # torch.compile must not trace the logging and the looking for drivers
def choose(op: str, impl: str, device_type: str, impls: Mapping[str, WhyNot]) -> str:
    """The implementation to run; impls is ordered from the fastest to the reference.

    Raises:
        ImplUnavailable: impl is unknown, or cannot run on that device.
    """
    if impl == "auto":
        return _auto(op, device_type, tuple(impls.items()))
    reason = impls[impl](device_type) if impl in impls else "there is no such implementation"
    if reason:
        available = [name for name, why_not in impls.items() if not why_not(device_type)]
        raise ImplUnavailable(f"{op}: impl={impl!r} cannot run: {reason}; have {available}")
    return impl


@functools.cache
def _auto(op: str, device_type: str, impls: tuple[tuple[str, WhyNot], ...]) -> str:
    passed_over: list[str] = []
    for name, why_not in impls:
        reason = why_not(device_type)
        if reason is None:
            log.info("%s on %s: %s%s", op, device_type, name, "".join(f"; {text}" for text in passed_over))
            return name
        passed_over.append(f"{name} cannot run: {reason}")
    raise ImplUnavailable(f"{op} cannot run on {device_type}: " + "; ".join(passed_over))


def triton(device_type: str) -> str | None:
    """The WhyNot of Triton kernels: they need CUDA, or Triton's interpreter on the CPU (TRITON_INTERPRET=1)."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cuda":
        return None
    from triton import knobs

    if device_type == "cpu" and knobs.runtime.interpret:
        return None
    return f"triton compiles for CUDA, not for {device_type!r} (TRITON_INTERPRET=1 interprets on the CPU, slowly)"


def anywhere(device_type: str) -> str | None:
    """The WhyNot of plain torch code."""
    return None


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One specialisation of one Triton kernel; names of arguments are those of the kernel's Python function."""

    name: str
    kernel: Any  # triton.runtime.JITFunction
    signature: Mapping[str, str]  # every argument: "*bf16", "*fp32", "*i64", "i32", "fp32", or "constexpr"
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int
    num_stages: int
    targets: tuple[int, ...] = (80, 90, 100)  # compute capabilities that it is launched on

    @property
    def attributes(self) -> dict[tuple[int], list[list[Any]]]:
        """Pointers are multiples of 16, as those of torch's tensors: at run time Triton sees that by itself."""
        places = enumerate(self.kernel.arg_names)
        return {(i,): [["tt.divisibility", 16]] for i, name in places if self.signature[name].startswith("*")}
