"""What an adaptation goes on from: one file, whole or not there. No random state: draws follow from seed and step."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablerep import atomic
from stablerep.config import UserError

CHECKPOINT = "checkpoint.pt"


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # done
    first_loss: float | None = None  # of the photos held out, before the first step
    best_loss: float | None = None
    best_step: int = 0
    looks_since_best: int = 0
    photos: str = ""  # a fingerprint of what is trained on
    model: str = ""  # of the weights it began with
    losses: list[float] = field(default_factory=list)  # of the steps since the last line of the log
    finished: bool = False  # its steps or its patience have ended


def save(
    path: Path,
    progress: Progress,
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None = None,
) -> None:
    """
    Raises:
        UserError: the disk is full or fails; the checkpoint there before is untouched.
    """
    state: dict[str, Any] = {"progress": asdict(progress), "best": dict(best or {})}
    state |= {"weights": {name: weight.detach() for name, weight in weights.items()}}
    try:
        with atomic.new_file(path) as file:
            torch.save(state | {"optimiser": optimiser.state_dict()}, file)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
        reason = " ".join(str(error).split())[:120]
        earlier = "the one before is whole" if path.exists() else "there is none before it"
        raise UserError(
            f"{path} cannot be written ({reason}); {earlier}: make room, then give the same command"
        ) from error


def restore(
    path: Path,
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    best: dict[str, Tensor] | None = None,
) -> Progress:
    """Bring the weights and the optimiser, and what `best` holds, to where a run stopped; a new one has Progress().

    Raises:
        UserError: the file is damaged, or of another model.
    """
    if not path.exists():
        return Progress()
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state["weights"][name])
        optimiser.load_state_dict(state["optimiser"])
        if best is not None:
            best.update({name: value.cpu() for name, value in state["best"].items()})
        return Progress(**state["progress"])
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is damaged ({reason}); delete it to begin the run anew") from error


def rate_at(step: int, steps: int, warmup: float) -> float:
    """The learning rate as a share of its peak: a straight rise, then a half cosine down to zero."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
