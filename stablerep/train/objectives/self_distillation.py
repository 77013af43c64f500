"""What SynCLR (arXiv 2312.17742) adds to StableRep: a teacher of averaged weights, masked patches, small crops."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from stablerep import distributed, ops
from stablerep.config import UserError
from stablerep.data.loader import Batch
from stablerep.train.config import TrainConfig
from stablerep.train.objectives.contrastive import Contrastive, gather, of_all_ranks, wide

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.07  # of the prototypes; DINO's and SynCLR's
SINKHORN_ROUNDS = 3
PATCH_HIDDEN, PATCH_BOTTLENECK = 2048, 256  # DINO's head


def create_stablerep(encoder: nn.Module, config: TrainConfig, *, bf16: bool) -> nn.Module:
    """StableRep, with what of SynCLR is asked for."""
    return (SelfDistilled if config.synclr.is_used else Contrastive)(encoder, config, bf16=bf16)


class SelfDistilled(Contrastive):
    """The multi-positive loss with small crops as more rows; with a teacher, its rows are what rows are compared to.

    Each picture is compared to the teacher's rows of all other pictures, as SynCLR does: global crops and small crops
    for themselves, each with its mean. With masked patches, the student sees its global crops with holes, and says of
    each hole which prototype the teacher, who sees it, has there (iBOT).
    """

    why_not_split = "small crops, masked patches and a teacher are no part of the features that are kept"

    def __init__(self, encoder: nn.Module, config: TrainConfig, *, bf16: bool) -> None:
        super().__init__(encoder, config, bf16=bf16)
        asked = config.synclr
        self._ibot_weight, self._momentum = asked.ibot_weight, asked.ema_teacher
        students: dict[str, nn.Module] = {"encoder": self.encoder, "head": self.head}
        if self._ibot_weight:
            _check_is_vit(encoder, config)
            width: int = encoder.embed_dim  # type: ignore[assignment]
            self.mask_token = nn.Parameter(torch.zeros(width))
            students["patch_head"] = self.patch_head = PrototypeHead(width, asked.ibot_prototypes)
        self.teacher = nn.ModuleDict(copy.deepcopy(students) if self._momentum else {}).requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:  # []
        with self.autocast(batch):
            features, patches = self._encode(self.encoder, batch, mask=True)
            small = [] if batch.small_images is None else [self.encoder(batch.small_images.flatten(0, 1))]
            rows = self.head(torch.cat([features, *small]))
        crops = 0 if batch.small_images is None else batch.small_images.shape[1]
        labels = torch.cat([batch.labels, batch.labels.repeat_interleave(crops)])
        if not self._momentum:
            loss = ops.multi_positive_loss(rows, labels, self._temperature, distributed.world())
            return self.add_koleo(loss, features, batch)
        with torch.no_grad(), self.autocast(batch):
            seen, teacher_patches = self._encode(self.teacher["encoder"], batch, mask=False)
            keys = self.teacher["head"](seen)
        itself = torch.arange(len(features), device=rows.device)
        itself = torch.cat([itself, itself.repeat_interleave(crops)])
        positives = self._against(keys, batch.labels, rows, labels, itself)
        loss = positives[: len(features)].mean()
        if crops:
            loss = loss + positives[len(features) :].mean()
        if self._ibot_weight:
            loss = loss + self._ibot_weight * self._of_patches(patches, teacher_patches, batch)
        return self.add_koleo(of_all_ranks(loss), features, batch)

    def loss(self, features: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError(self.why_not_split)

    def update_teacher(self, progress: float | None) -> None:
        """After a step, at a share of the run: the momentum rises to 1 as a half cosine. None: be as the student is."""
        for name, teacher in self.teacher.items():
            student = self.get_submodule(name)
            if progress is None:
                teacher.load_state_dict(student.state_dict())
                continue
            share = (1 - self._momentum) * (1 + math.cos(math.pi * progress)) / 2
            with torch.no_grad():
                for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                    old.lerp_(new, share)

    def _encode(self, encoder: nn.Module, batch: Batch, *, mask: bool) -> tuple[Tensor, Tensor | None]:
        """Features [B, F] and, where they are asked for, patches [B * P, D]; with mask, of images with holes.

        timm's own forward runs; only what its patch embedding gives is changed.
        """
        if not self._ibot_weight:
            return encoder(batch.images), None
        vit: Any = encoder
        hook = vit.patch_embed.register_forward_hook(self._hide(batch)) if mask else None
        try:
            tokens = vit.forward_features(batch.images)
        finally:
            if hook:
                hook.remove()
        return vit.forward_head(tokens), tokens[:, vit.num_prefix_tokens :].flatten(0, 1)

    def _hide(self, batch: Batch) -> Any:
        def replace(module: nn.Module, inputs: Any, patches: Tensor) -> Tensor:
            hidden = torch.zeros(patches.shape[:-1].numel(), dtype=torch.bool, device=patches.device)
            hidden = hidden.index_fill(0, batch.masked, True).view(*patches.shape[:-1], 1)  # type: ignore[arg-type]
            return torch.where(hidden, self.mask_token.to(patches.dtype), patches)

        return replace

    def _against(self, keys: Tensor, key_labels: Tensor, rows: Tensor, labels: Tensor, itself: Tensor) -> Tensor:
        """[R] of each row LSE less the mean of its positives, over the teacher's rows but that of its picture."""
        rows, keys = (functional.normalize(wide(each), dim=1) for each in (rows, keys))
        keys, key_labels = gather(keys), gather(key_labels)
        itself = itself + distributed.rank() * (len(keys) // distributed.world_size())
        scores = (rows @ keys.T / self._temperature).scatter(1, itself[:, None], torch.finfo(rows.dtype).min)
        positive = (labels[:, None] == key_labels).scatter(1, itself[:, None], False)
        count = positive.sum(1)
        mean = (scores * positive).sum(1) / count.clamp(min=1)
        return (scores.logsumexp(1) - mean).where(count > 0, 0)

    def _of_patches(self, patches: Tensor | None, teacher_patches: Tensor | None, batch: Batch) -> Tensor:  # []
        """The mean over pictures of the mean over their masked patches; a picture without any counts as 0."""
        assert patches is not None and teacher_patches is not None and batch.masked is not None
        with torch.no_grad(), self.autocast(batch):
            target = sinkhorn(wide(self.teacher["patch_head"](teacher_patches[batch.masked])) / TEACHER_TEMPERATURE)
        with self.autocast(batch):
            logits = wide(self.patch_head(patches[batch.masked])) / STUDENT_TEMPERATURE
        entropy = -(target * logits.log_softmax(1)).sum(1)  # [M]
        picture = batch.masked // (len(patches) // len(batch.images))
        number = torch.zeros(len(batch.images), dtype=entropy.dtype, device=entropy.device)
        number = number.index_add(0, picture, torch.ones_like(entropy))
        return (entropy / number[picture]).sum() / len(batch.images)


class PrototypeHead(nn.Module):
    """MLP to unit rows, and their cosines with learned prototypes: DINO's head."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, PATCH_HIDDEN), nn.GELU(), nn.Linear(PATCH_HIDDEN, PATCH_HIDDEN), nn.GELU(),
            nn.Linear(PATCH_HIDDEN, PATCH_BOTTLENECK),
        )  # fmt: skip
        self.prototypes = nn.Parameter(torch.randn(prototypes, PATCH_BOTTLENECK))

    def forward(self, rows: Tensor) -> Tensor:  # [M, D] -> [M, prototypes] in -1 .. 1
        return functional.linear(functional.normalize(self.layers(rows), dim=1), functional.normalize(self.prototypes))


@torch.no_grad()
def sinkhorn(scores: Tensor) -> Tensor:  # [M, K] -> [M, K], rows of sum 1
    """Sinkhorn-Knopp over the rows of all ranks: each prototype gets about as much; M may differ from rank to rank."""
    shares = (scores - _over_ranks(scores.max(), dist.ReduceOp.MAX)).exp()
    for _ in range(SINKHORN_ROUNDS):
        shares = shares / _over_ranks(shares.sum(0), dist.ReduceOp.SUM)
        shares = shares / shares.sum(1, keepdim=True)
    return shares


def _over_ranks(values: Tensor, how: Any) -> Tensor:
    if distributed.world_size() > 1:
        dist.all_reduce(values, how)
    return values


def _check_is_vit(encoder: nn.Module, config: TrainConfig) -> None:
    from timm.models import VisionTransformer

    if not isinstance(encoder, VisionTransformer):
        raise UserError(
            f"--ibot-weight {config.synclr.ibot_weight:g} masks patches, which --arch {config.arch} has none of; leave "
            "it out, or take a vit_... model"
        )
