"""Fixtures for the tests of ops."""

from __future__ import annotations

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
