"""The tokenizer and the text model: CLIP's, with a vocabulary of the captions' own words."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 24  # the longest caption takes 12; room for a few words more


def train_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges learned from the captions; any other text falls apart into bytes."""
    ascii_alone = [chr(code) for code in range(33, 127)]  # each may also end a word
    return CLIPTokenizer(model_max_length=MAX_TOKENS).train_new_from_iterator(
        [*captions, *ascii_alone],
        vocab_size=1024,
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )


def new_text_model(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 96, 0.3 M weights, trained together with the UNet."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=96,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
