"""AdamW with decay on matrices only, its learning rate, and an update that skips what is not finite."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stablerep.train.config import TrainConfig


def create_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Weight decay goes to matrices and convolutions, less what timm excepts (class token, position embedding)."""
    excepted: set[str] = set()
    for prefix, module in model.named_modules():
        if hasattr(module, "no_weight_decay"):
            excepted |= {f"{prefix}.{name}".lstrip(".") for name in module.no_weight_decay()}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            (decayed if weight.dim() >= 2 and name not in excepted else others).append(weight)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    device = decayed[0].device
    # On a GPU a tensor, which a captured or compiled step reads anew; on the CPU the fused kernel takes a double.
    lr = torch.tensor(config.peak_lr, device=device) if device.type == "cuda" else config.peak_lr
    return torch.optim.AdamW(groups, lr=lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int) -> float:
    """Linear from peak / warmup_steps to peak, then a half cosine to 0 after the last step."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


class Update(NamedTuple):
    gradient_norm: Tensor  # [] float
    skipped: Tensor  # [] float: 1.0 or 0.0


def set_learning_rate(optimiser: torch.optim.AdamW, lr: float) -> None:
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def apply_gradients(optimiser: torch.optim.AdamW) -> Update:
    """One update, unless some gradient is not finite. The device decides; the host does not wait for it."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None], foreach=True)
    if hasattr(norm, "full_tensor"):  # a DTensor, which costs a second to import
        norm = norm.full_tensor()  # of sharded gradients each rank has a part
    skipped = (~torch.isfinite(norm)).float()
    optimiser.found_inf = skipped  # type: ignore[attr-defined]  # the fused kernel reads it, as it does for GradScaler
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return Update(norm, skipped)
