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


# With two views of each picture and nothing else alike, the multi-positive loss is SimCLR's NT-Xent; with the classes
# of pictures for labels it is SupCon.
OBJECTIVES = {
    "stablerep": Objective("prompt"),
    "simclr": Objective("image", 2),
    "supcon": Objective("class", 2),
    "clip": Objective("caption", 1, PARTS + "image_text:Clip", reads_text=True),
    "siglip": Objective("caption", 1, PARTS + "image_text:SigLip", reads_text=True),
    "stablerep+": Objective("prompt", None, PARTS + "image_text:StableRepPlus", reads_text=True),
}


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower of clip, siglip and stablerep+. As it stands: CLIP's."""

    tokenizer: str = "default"
    """CLIP's tokenizer: a folder or a name of the hub (openai/clip-vit-base-patch32). `default`: the embedded
    generator's, whose few hundred tokens cover any text, if in many pieces."""

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
