"""The text tower of CLIP, and its form on disk that transformers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stablerep import hub
from stablerep.models.tokenizer import Tokenizer, open_tokenizer

FOLDER, PROJECTION = "text_tower", "image_projection.safetensors"


class TextTower(nn.Module):
    """A causal transformer over the tokens of a caption; what stands at the end of the text, projected.

    transformers' CLIPTextModelWithProjection, with random weights.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer

    @classmethod
    def create(
        cls, tokenizer: Tokenizer, *, layers: int = 12, width: int = 512, heads: int = 8, embed_dim: int = 512
    ) -> TextTower:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        inner = tokenizer.inner
        config = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, projection_dim=embed_dim,
            num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=tokenizer.context_length,
            bos_token_id=inner.bos_token_id, eos_token_id=inner.eos_token_id, pad_token_id=inner.pad_token_id,
        )  # fmt: skip
        return cls(CLIPTextModelWithProjection(config), tokenizer)

    def forward(self, tokens: Tensor) -> Tensor:  # [T, L] int64 -> [T, embed_dim]
        return self.model(input_ids=tokens).text_embeds

    def save(self, folder: Path, image_projection: nn.Module, scale: Tensor) -> None:
        """Write tower and tokenizer as transformers does, and the map that brings image features beside texts."""
        self.model.save_pretrained(folder)
        self.tokenizer.inner.save_pretrained(folder)
        weights: dict[str, Any] = {"weight": image_projection.weight, "logit_scale": scale}
        save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / PROJECTION)


def load_text_tower(exported: Path) -> tuple[TextTower, Tensor, Tensor]:
    """Of an exported encoder: its text tower, the matrix [embed_dim, num_features] that brings image features beside
    texts, and the logit scale [].

    Raises:
        UserError: it has none.
    """
    from transformers import CLIPTextModelWithProjection

    folder = exported / FOLDER
    model = hub.load_model("text tower", CLIPTextModelWithProjection, folder)
    tokenizer = open_tokenizer(str(folder), model.config.max_position_embeddings)
    held = load_file(folder / PROJECTION)
    return TextTower(model, tokenizer).eval(), held["weight"], held["logit_scale"]
