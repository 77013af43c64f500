"""Checkpoints: whole or not there, the newest few kept, a damaged one passed over.

There is no state of random numbers or of the data in them: both follow from the seed and the step.
"""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from stablerep.config import UserError

log = logging.getLogger("stablerep.train")


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write the state after `step` steps, then drop all but the newest `keep`.

    Raises:
        UserError: the disk is full or fails; the checkpoints there before are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, step)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state | {"step": step}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
        partial.unlink(missing_ok=True)
        earlier = steps(folder)
        safe = f"the checkpoint of step {earlier[-1]} is whole" if earlier else "there is no earlier one"
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be written ({reason}); {safe}: make room, then give the same command"
        ) from error
    for old in steps(folder)[:-keep]:
        _path(folder, old).unlink(missing_ok=True)


def load_newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None where there is none.

    Raises:
        UserError: there are checkpoints and none can be read.
    """
    damaged = []
    for step in reversed(steps(folder)):
        try:
            state = torch.load(_path(folder, step), map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, KeyError) as error:
            damaged.append(_path(folder, step))
            log.warning("%s is damaged (%s); taking the one before", damaged[-1], " ".join(str(error).split())[:120])
            continue
        for path in damaged:  # else a later save would count it among the newest, and a resumed run meet it again
            path.unlink(missing_ok=True)
        return state
    if damaged:
        raise UserError(f"{folder}: no checkpoint there can be read; delete the folder to begin the run anew")
    return None


def steps(folder: Path) -> list[int]:
    """The steps of which there are checkpoints, rising."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.pt"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step:09}.pt"
