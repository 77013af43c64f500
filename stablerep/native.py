"""The one place that imports the compiled module, and the reason in words where it cannot serve."""

from __future__ import annotations

import functools
from types import ModuleType


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        import stablerep._native as native
    except ImportError as error:
        return None, f"stablerep._native cannot be imported ({error}); run `pip install .` in the repository"
    return native, ""


def module() -> ModuleType:
    """The compiled module.

    Raises:
        ImportError: with the reason and the mend.
    """
    native, reason = _load()
    if native is None:
        raise ImportError(reason)
    return native


def why_not(device_type: str) -> str | None:
    """Why native code cannot run on "cpu" or "cuda" tensors; None where it can."""
    native, reason = _load()
    if native is None:
        return reason
    if device_type == "cpu":
        return None
    if device_type != "cuda":
        return f"there is no native code for device {device_type!r}"
    if native.build_info()["cuda"] is None:
        return "stablerep was built without nvcc; install the CUDA toolkit and run `pip install .` in the repository"
    return None


def build_info() -> dict[str, str | bool | None] | None:
    """What was compiled: version, compiler, openmp, cuda (nvcc's version or None), cuda_architectures."""
    native, _ = _load()
    return None if native is None else native.build_info()
