"""CLIP's tokenizer: captions to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablerep import hub
from stablerep.config import UserError


@dataclass(frozen=True)
class Tokenizer:
    inner: Any  # transformers' CLIPTokenizer
    context_length: int

    def __call__(self, texts: Sequence[str]) -> Tensor:  # [T, context_length] int64, cut or filled up at the end
        tokens = self.inner(list(texts), padding="max_length", truncation=True, max_length=self.context_length)
        return torch.tensor(tokens["input_ids"])

    def __len__(self) -> int:
        return len(self.inner)


def open_tokenizer(name: str, context_length: int) -> Tokenizer:
    """Open a folder, a name of the hub, or `default`: that of the embedded generator.

    Raises:
        UserError: there is none, or it cannot be had.
    """
    from transformers import CLIPTokenizer

    folder = hub.default_generator() / "tokenizer" if name == "default" else _folder(name)
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.json")):  # one of no words would open
        raise UserError(f"--tokenizer {name} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
    return Tokenizer(hub.load("--tokenizer", CLIPTokenizer, folder), context_length)


def _folder(name: str) -> Path:
    folder = hub.local_folder("--tokenizer", name)
    return folder or hub.snapshot("--tokenizer", name, (".json", ".txt"))
