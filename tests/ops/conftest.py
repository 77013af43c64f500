"""Fixtures for the tests of ops."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def empty_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty filled with NaN: an element that a kernel forgets is then seen."""
    empty = torch.empty

    def nan_filled(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", nan_filled)


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """interpreted(fn, *args): fn(*args) in a process whose Triton kernels run in the interpreter, on CPU tensors.

    The variable must be set before kernels are defined. fn and args are pickled: fn must stand at the top of a module.
    """
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setenv("OMP_NUM_THREADS", "1")
            pool.submit(os.getpid).result()  # starts the process
        yield lambda fn, *args: pool.submit(fn, *args).result()
