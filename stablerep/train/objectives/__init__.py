"""What is trained: an encoder, what stands on it, and the loss over the rows of all ranks.

docs/objectives.md shows how to add one.
"""

from __future__ import annotations

import importlib

from torch import nn

from stablerep.models import batch_norm
from stablerep.train.config import OBJECTIVES, TrainConfig


def create_objective(encoder: nn.Module, config: TrainConfig, *, bf16: bool) -> nn.Module:
    """What config.objective asks for, with random weights besides the encoder's.

    Its BatchNorms, the encoder's too, see the rows of all ranks.
    """
    create = OBJECTIVES[config.objective].create
    if isinstance(create, str):
        module, _, name = create.partition(":")
        create = getattr(importlib.import_module(module), name)
    return batch_norm.over_ranks(create(encoder, config, bf16=bf16))
