"""What the checks of `make gpu-check` share."""

from __future__ import annotations

from typing import Any

Numbers = dict[str, Any]
SEED = 5


class Skip(Exception):
    """A check cannot run here; the text says why."""
