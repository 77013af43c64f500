"""AdamW with decay on matrices only, and an update that skips itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stablerep.train.config import TrainConfig


def create_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Weight decay goes to matrices and convolutions, less what timm excepts (class token, position embedding)."""
    spared: set[str] = set()
    for prefix, module in model.named_modules():
        if hasattr(module, "no_weight_decay"):
            spared |= {f"{prefix}.{name}".lstrip(".") for name in module.no_weight_decay()}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            (decayed if weight.dim() >= 2 and name not in spared else others).append(weight)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=(config.beta1, config.beta2), fused=True)


def update(optimiser: torch.optim.AdamW, lr: float) -> tuple[Tensor, Tensor]:  # [] gradient norm, [] 1.0 if skipped
    """One step, unless some gradient is not finite. The device decides; nobody waits for it."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None], foreach=True)
    skipped = (~torch.isfinite(norm)).float()
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.found_inf = skipped  # type: ignore[attr-defined]  # the fused kernel reads it, as it does for GradScaler
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm, skipped
