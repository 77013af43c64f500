"""The tokenizer and the text model: CLIP's, with a vocabulary of the captions' own words."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 24  # the longest caption takes 12; room for a few words more


def train_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """CLIP's byte-level BPE with merges learned from the captions; any other text falls apart into bytes."""
    empty = CLIPTokenizer(model_max_length=MAX_TOKENS)
    special = [empty.bos_token, empty.eos_token]
    alphabet = sorted(ByteLevel.alphabet())
    # The trainer numbers what it meets in an order that changes from run to run, and breaks ties of merges by number.
    # What it is given as special keeps its place.
    trained = Tokenizer(BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    trained.normalizer = empty.backend_tokenizer.normalizer
    trainer = BpeTrainer(
        vocab_size=1024,
        special_tokens=[*special, *alphabet, *(byte + "</w>" for byte in alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=MAX_TOKENS)


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
