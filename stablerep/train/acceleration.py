"""What makes a step faster and changes no more than rounding: bfloat16, TF32, compilation."""

from __future__ import annotations

import logging

import torch
from torch import nn

from stablerep import distributed
from stablerep.config import UserError
from stablerep.models import blocks_of
from stablerep.train.config import TrainConfig

log = logging.getLogger("stablerep.train")


def choose_precision(config: TrainConfig, device: torch.device) -> bool:  # whether to autocast to bfloat16
    """What --precision asks for; on CUDA also whether products that stay float32 may be TF32, and what was chosen.

    `fp32` means float32: torch's own default rounds convolutions to TF32's 10 bits even then.
    """
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if bf16 else "highest")
        torch.backends.cudnn.allow_tf32 = bf16
        if distributed.rank() == 0:
            log.info("precision: %s", "bf16 autocast, TF32 where float32 stays" if bf16 else "float32 without TF32")
    return bf16


def compile_model(model: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """Compile encoder and head where --compile says so; parameters and buffers keep their names.

    On several ranks block by block: the gradients of a graph come all at its end, and are exchanged only then.
    """
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return
    encoder, head = model.get_submodule("encoder"), model.get_submodule("head")
    parts = (blocks_of(encoder) if distributed.world_size() > 1 else []) or [encoder]
    for part in [*parts, head]:
        part.compile(dynamic=False)  # batches are of one size
    if distributed.rank() == 0:
        log.info("compiling %s; the first step takes longer for it (--compile off: not at all)", config.arch)


def refuse_compiler_error(error: RuntimeError) -> None:
    """Raise a UserError if it says that torch.compile, or the compiler it calls, has failed."""
    from torch._dynamo.exc import TorchDynamoException  # 3 s: only where something has failed already

    if isinstance(error, TorchDynamoException):
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"torch.compile fails on this machine ({reason}); give --compile off") from error
