"""What the checks of `make gpu-check` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

Numbers = dict[str, Any]
SEED = 5
ROOT = Path(__file__).resolve().parent.parent


class Skip(Exception):
    """A check cannot run here; the text says why."""


def run_tests(*paths: str) -> Numbers:
    """Tests of some files, among them those that the CPU skips."""
    code = pytest.main([*(f"{ROOT}/{path}" for path in paths), "-q", "--no-header", "-p", "no:cacheprovider"])
    assert code == 0, f"pytest ended with {code!r}; its lines are above"
    return {}
