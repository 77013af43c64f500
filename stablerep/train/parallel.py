"""Weights, gradients and moments shared out over the ranks (FSDP2), and whole again for a checkpoint.

A checkpoint has one form, the whole tensors in one file, so that a run goes on with any number of ranks, sharded or
not, and earlier checkpoints stay readable.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from stablerep import distributed
from stablerep.config import UserError
from stablerep.models import blocks_of, create_encoder
from stablerep.train.config import TrainConfig
from stablerep.train.optimiser import create_optimiser


def shard(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:  # its new optimiser
    """Share out an objective's weights: each block of the encoder is gathered alone, when it is used.

    Raises:
        UserError: an objective with a text tower or a teacher, which are not shared out yet.
    """
    if hasattr(model, "text_tower") or config.synclr.is_used:
        what = "--ema-teacher and --local-crops" if config.synclr.is_used else f"--objective {config.objective}"
        raise UserError(f"--parallel fsdp does not go with {what}; give --parallel ddp")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # features are never changed in place
    model.to(memory_format=torch.contiguous_format)  # FSDP2 takes no others
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    for block in blocks_of(model.get_submodule("encoder")):
        fully_shard(block, mesh=mesh)
    for part in model.children():
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    return create_optimiser(model, config)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(part, FSDPModule) for part in model.modules())


def synchronise_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward of the encoder adds its gradients up over the ranks, or leaves that to a later one."""
    encoder = model.get_submodule("encoder")
    if isinstance(encoder, FSDPModule):
        encoder.set_requires_gradient_sync(wanted)


def whole(tree: Any) -> Any:
    """A tree of dicts and lists with whole tensors in place of shards. Every rank calls it; plain tensors stay."""
    return map_tensors(lambda tensor: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor, tree)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A tree of dicts and lists with function(tensor) in place of each tensor; all else stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: map_tensors(function, value) for name, value in tree.items()}
    return [map_tensors(function, value) for value in tree] if isinstance(tree, list) else tree


def whole_encoder(model: nn.Module, config: TrainConfig) -> nn.Module:
    """The encoder with whole weights. Every rank calls it."""
    encoder = model.get_submodule("encoder")
    if not is_sharded(model):
        return encoder
    plain = create_encoder(config.arch, config.image_size)
    plain.load_state_dict(whole(encoder.state_dict()))
    return plain


def load(model: nn.Module, optimiser: torch.optim.AdamW, weights: dict[str, Tensor], moments: dict[str, Any]) -> None:
    """Put whole weights and an optimiser's whole state where they belong, sharded or not."""
    if is_sharded(model):
        ours = model.state_dict()
        weights = {name: _as_shard(value, ours[name]) for name, value in weights.items()}
        in_order = [weight for group in optimiser.param_groups for weight in group["params"]]
        states = {
            number: {name: _as_shard(value, in_order[number]) for name, value in state.items()}
            for number, state in moments["state"].items()
        }
        moments = moments | {"state": states}
    model.load_state_dict(weights)
    optimiser.load_state_dict(moments)


def _as_shard(value: Tensor, like: Tensor) -> Tensor:
    if isinstance(like, DTensor) and value.shape == like.shape:  # the count of steps is a scalar, and whole
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
