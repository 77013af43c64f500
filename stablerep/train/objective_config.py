"""Which objectives there are, and what only some of them are asked: flags, read without importing torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stablerep.config import UserError, check_at_least

if TYPE_CHECKING:
    from torch import nn

    from stablerep.data.sampling import GroupBy

PARTS = "stablerep.train.objectives."


@dataclass(frozen=True)
class Objective:
    """Which pictures a batch holds, which of them are positives of each other, and what is made of them."""

    group_by: GroupBy
    views: int | None = None  # of a group in a batch; None: as --views-per-prompt says
    create: str | Callable[..., nn.Module] = PARTS + "contrastive:Contrastive"
    """(encoder, config, bf16=...) to the module that is trained; `module:name` is imported when it is needed."""
    reads_text: bool = False  # batches carry the captions of their pictures
    usual_views: int = 6  # where --views-per-prompt is not given
    fewest_views: int = 2  # that it may say: with one, nothing else in a batch would be a positive


# With two views of each picture and nothing else alike, the multi-positive loss is SimCLR's NT-Xent; with the classes
# of pictures for labels it is SupCon.
OBJECTIVES = {
    "stablerep": Objective("prompt", None, PARTS + "self_distillation:create_stablerep"),
    "simclr": Objective("image", 2),
    "supcon": Objective("class", usual_views=2, fewest_views=1),  # one has positives: other pictures of its class
    "clip": Objective("caption", 1, PARTS + "image_text:Clip", reads_text=True),
    "siglip": Objective("caption", 1, PARTS + "image_text:SigLip", reads_text=True),
    "stablerep+": Objective("prompt", None, PARTS + "image_text:StableRepPlus", reads_text=True),
}


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower of clip, siglip and stablerep+. As it stands: CLIP's."""

    tokenizer: str = "default"
    """CLIP's tokenizer: a folder or a name of the hub (openai/clip-vit-base-patch32). `default`: the embedded
    generator's, whose few hundred tokens spell any Latin text, if in many pieces."""

    context_length: int = 77
    """Tokens of a caption that are read."""

    text_layers: int = 12
    """Layers of the text tower."""

    text_width: int = 512
    """Width of the text tower."""

    text_heads: int = 8
    """Attention heads of the text tower."""

    embed_dim: int = 512
    """Width of what images and texts are compared in."""

    def __post_init__(self) -> None:
        check_at_least(self, context_length=3, text_layers=1, text_width=1, text_heads=1, embed_dim=1)
        if self.text_width % self.text_heads:
            raise UserError(
                f"--text-width {self.text_width} is no multiple of --text-heads {self.text_heads}; "
                f"use {max(1, self.text_width // self.text_heads) * self.text_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class SynclrConfig:
    """What SynCLR, and DINOv2 with its KoLeo, add to stablerep. As it stands: nothing."""

    ema_teacher: float = 0.0
    """Compare to the rows of a teacher whose weights are a moving average, of this momentum at first, 1 at the end;
    SynCLR: 0.994. 0: no teacher."""

    ibot_weight: float = 0.0
    """Weight of the loss of masked patches (iBOT), of a vit_... and with --ema-teacher; SynCLR: 1."""

    ibot_prototypes: int = 65_536
    """How many kinds of patches there are."""

    local_crops: int = 0
    """Small crops of each picture beside the large one; SynCLR: 4."""

    local_crop_size: int = 96
    """Side of a small crop in pixels; it shows 5 to 32 percent of the picture."""

    koleo_weight: float = 0.0
    """Weight of the term that moves each picture's features away from the nearest of another prompt (KoLeo); DINOv2:
    0.1."""

    def __post_init__(self) -> None:
        check_at_least(self, koleo_weight=0, ibot_weight=0, ibot_prototypes=2, local_crops=0, local_crop_size=8)
        if not 0 <= self.ema_teacher < 1:
            raise UserError(f"--ema-teacher must be from 0 to below 1, got {self.ema_teacher}; SynCLR's is 0.994")
        if self.ibot_weight and not self.ema_teacher:
            raise UserError(f"--ibot-weight {self.ibot_weight:g} needs a teacher; add --ema-teacher 0.994")

    @property
    def is_used(self) -> bool:
        """Whether a loss needs more than the features of its batch: small crops, or a teacher's."""
        return bool(self.ema_teacher or self.local_crops)
