"""Objectives with language: CLIP, SigLIP, and StableRep+, which is StableRep with CLIP beside it."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from stablerep import distributed, ops
from stablerep.data.loader import Batch
from stablerep.models.text_tower import FOLDER, TextTower
from stablerep.models.tokenizer import open_tokenizer
from stablerep.train.config import TrainConfig
from stablerep.train.objectives.contrastive import Contrastive, gather, of_all_ranks, wide

FIRST_SCALE, MOST_SCALE = 1 / 0.07, 100.0  # CLIP's
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0  # at first nearly every pair is told to be none, as nearly every one is


class Clip(Contrastive):
    """Images and captions find each other; those of an equal caption are all right. The head is a linear map."""

    first_scale = FIRST_SCALE

    def __init__(self, encoder: nn.Module, config: TrainConfig, *, bf16: bool) -> None:
        super().__init__(encoder, config, bf16=bf16)
        text = config.text
        self.text_tower = TextTower.create(
            open_tokenizer(text.tokenizer, text.context_length),
            layers=text.text_layers, width=text.text_width, heads=text.text_heads, embed_dim=text.embed_dim,
        )  # fmt: skip
        self.logit_scale = nn.Parameter(torch.tensor(math.log(self.first_scale)))

    def create_head(self, width: int, config: TrainConfig) -> nn.Module:
        return nn.Linear(width, config.text.embed_dim, bias=False)

    def loss(self, features: Tensor, batch: Batch) -> Tensor:  # []
        return self.of_pairs(features, batch)

    @property
    def projection(self) -> nn.Module:
        """What brings features of images beside those of texts."""
        return self.head

    def of_pairs(self, features: Tensor, batch: Batch) -> Tensor:  # []
        assert batch.texts is not None and batch.text_of is not None
        with self.autocast(batch):
            images, texts = self.projection(features), self.text_tower(batch.texts)[batch.text_of]
        return self.pair_loss(images, texts.to(images.dtype), batch.labels)

    def pair_loss(self, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:  # []
        return ops.image_text_loss(images, texts, labels, self.scale(), distributed.world())

    def scale(self) -> Tensor:  # []
        with torch.no_grad():  # the number itself: clamped in the loss alone it would be without gradient for good
            self.logit_scale.clamp_(max=math.log(MOST_SCALE))
        return self.logit_scale.exp()

    def save_beside(self, folder: Path) -> None:
        """Write what zero-shot needs into the exported encoder's folder."""
        self.text_tower.save(folder / FOLDER, self.projection, self.scale())


class StableRepPlus(Clip):
    """The multi-positive loss of images plus CLIP's of images and captions, both of weight 1."""

    def __init__(self, encoder: nn.Module, config: TrainConfig, *, bf16: bool) -> None:
        super().__init__(encoder, config, bf16=bf16)
        self.image_projection = Clip.create_head(self, encoder.num_features, config)  # type: ignore[arg-type]

    create_head = Contrastive.create_head

    @property
    def projection(self) -> nn.Module:
        return self.image_projection

    def loss(self, features: Tensor, batch: Batch) -> Tensor:  # []
        return Contrastive.loss(self, features, batch) + self.of_pairs(features, batch)


class SigLip(Clip):
    """Each pair of an image and a caption is told for itself whether it is one (SigLIP, arXiv 2303.15343)."""

    first_scale = SIGLIP_SCALE

    def __init__(self, encoder: nn.Module, config: TrainConfig, *, bf16: bool) -> None:
        super().__init__(encoder, config, bf16=bf16)
        self.logit_bias = nn.Parameter(torch.tensor(SIGLIP_BIAS))

    def pair_loss(self, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:  # []
        """The sum over all texts of all ranks, the mean over all images; this rank scores its own images."""
        images, texts = (functional.normalize(wide(rows), dim=1) for rows in (images, texts))
        texts, all_labels = _Gather.apply(texts), gather(labels)
        logits = self.scale() * images @ texts.T + self.logit_bias  # [B, B x ranks]
        sign = torch.where(labels[:, None] == all_labels, 1.0, -1.0)
        return of_all_ranks(-functional.logsigmoid(sign * logits).sum() / len(images))


class _Gather(torch.autograd.Function):
    """The rows of all ranks; the gradient of each rank's copy reaches the rank whose rows they are."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.length = len(rows)
        return gather(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        if distributed.world_size() > 1:
            gradient = gradient.clone()
            dist.all_reduce(gradient)
        return gradient.narrow(0, distributed.rank() * ctx.length, ctx.length)
