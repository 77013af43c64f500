"""What it takes to compile a Triton kernel without a GPU: each `_triton.py` lists all that it can launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One specialisation of one kernel; names of arguments are those of the kernel's Python function."""

    name: str
    kernel: Any  # triton.runtime.JITFunction
    signature: Mapping[str, str]  # every argument: "*bf16", "*fp32", "*i64", "i32", "fp32", or "constexpr"
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int
    num_stages: int
    targets: tuple[int, ...] = (80, 90, 100)  # compute capabilities that it is launched on

    @property
    def attributes(self) -> dict[tuple[int], list[list[Any]]]:
        """Pointers are multiples of 16, as those of torch's tensors: at run time Triton sees that, here it is told."""
        places = enumerate(self.kernel.arg_names)
        return {(i,): [["tt.divisibility", 16]] for i, name in places if self.signature[name].startswith("*")}
