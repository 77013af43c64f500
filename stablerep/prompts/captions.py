"""A local language model rewrites the templates' texts into captions (as SynCLR does, arXiv 2312.17742).

The template's text is what the model is asked for, and what stays where it answers nothing of use.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor

from stablerep import hub
from stablerep.config import UserError

FLAG = "--llm"
TEMPERATURE, TOP_P = 0.8, 0.95
MOST_NEW_TOKENS = 80
MOST_WORDS = 40  # Stable Diffusion takes 77 tokens, about 55 words
INSTRUCTION = (
    "Rewrite each description as the caption of one photo, in at most 30 words. Keep the name of its subject word for "
    "word, invent what else is seen, and answer with the caption alone, on one line."
)
SETTINGS = (TEMPERATURE, TOP_P, MOST_NEW_TOKENS, MOST_WORDS, INSTRUCTION)  # what captions follow from, besides
Examples = Sequence[tuple[str, str]]  # a template's text, and a caption of it


@dataclass(frozen=True)
class Writer:
    """A causal language model of transformers on one device."""

    model: Any
    tokenizer: Any
    ends: list[int]  # tokens that end an answer: end-of-text, and those with a line break

    @torch.inference_mode()
    def answers(self, asked: Sequence[tuple[str, Examples]], seed: int, attempt: int) -> list[str | None]:
        """A line for each text that is to be rewritten as its examples are, or None for one that did not end in time.

        An answer is drawn by numbers that follow from (seed, text, attempt): its neighbours in the batch reach it only
        by the rounding of the model.
        """
        questions = [self._question(text, examples) for text, examples in asked]
        chat = self.tokenizer.chat_template is not None  # it writes the special tokens itself
        inputs = self.tokenizer(
            questions, padding=True, padding_side="left", add_special_tokens=not chat, return_tensors="pt"
        ).to(self.model.device)
        draws = [_draws(f"{seed}\n{attempt}\n{text}") for text, _ in asked]
        start = inputs.input_ids.shape[1]
        made = self.model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            generation_config=GenerationConfig(
                max_new_tokens=MOST_NEW_TOKENS,
                do_sample=False,  # _Drawn leaves one token to take
                eos_token_id=self.ends,
                pad_token_id=self.tokenizer.pad_token_id,
            ),
            logits_processor=[_Drawn(torch.tensor(draws, dtype=torch.float64, device=self.model.device), start)],
        )[:, start:].tolist()
        ended = [bool({*tokens} & {*self.ends}) for tokens in made]
        lines = [_first_line(text) for text in self.tokenizer.batch_decode(made, skip_special_tokens=True)]
        return [line if end else None for line, end in zip(lines, ended, strict=True)]

    def _question(self, text: str, examples: Examples) -> str:
        if self.tokenizer.chat_template is None:
            shown = "".join(f"{given} => {caption}\n" for given, caption in examples)
            return f"{INSTRUCTION}\n\n{shown}{text} =>"
        turns = [turn for given, caption in examples for turn in (("user", given), ("assistant", caption))]
        turns.append(("user", text))
        turns[0] = ("user", f"{INSTRUCTION}\n\n{turns[0][1]}")  # not every template knows a system's turn
        messages = [{"role": role, "content": content} for role, content in turns]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )


class _Drawn(LogitsProcessor):
    """Nucleus sampling (Holtzman et al. 2020) by numbers given beforehand: rules out all tokens but the drawn one."""

    def __init__(self, draws: Tensor, start: int) -> None:
        self._draws, self._start = draws, start  # [B, MOST_NEW_TOKENS] float64 in 0..1, tokens of the question

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        share, order = torch.softmax(scores.double() / TEMPERATURE, 1).sort(dim=1, descending=True, stable=True)
        below = share.cumsum(1) - share
        total = share.where(below < TOP_P, 0).sum(1, keepdim=True)
        draw = self._draws[:, input_ids.shape[1] - self._start, None] * total
        place = (below <= draw).sum(1, keepdim=True) - 1
        return torch.full_like(scores, -torch.inf).scatter_(1, order.gather(1, place), 0)


def open_writer(model: str, device: torch.device) -> Writer:
    """Open a folder of transformers or a hub name; on the CPU in float32, else in the precision it was saved in.

    Raises:
        UserError: nothing there, or no causal language model of safetensors.
    """
    folder = hub.model_folder(FLAG, model)
    tokenizer = hub.load(FLAG, AutoTokenizer, folder)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{FLAG} {model}: its tokenizer has no eos_token, which ends an answer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = torch.float32 if device.type == "cpu" else "auto"
    loaded = hub.load_model(FLAG, AutoModelForCausalLM, folder, dtype=dtype).to(device)
    ends = loaded.generation_config.eos_token_id
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    pieces = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    breaks = {number for number, piece in enumerate(pieces) if len(f"{piece}.".splitlines()) > 1}
    return Writer(loaded, tokenizer, sorted(known | breaks))


def why_unfit(caption: str | None, concept: str, taken: Collection[str]) -> str:
    """What is wrong with an answer; "" if it can be a prompt."""
    if caption is None or len(caption.split()) > MOST_WORDS:
        return "too long"
    if not caption or not caption.isprintable() or "\ufffd" in caption or "<" in caption or caption.endswith(":"):
        return "no caption"
    if concept.casefold() not in caption.casefold():
        return "without the class"
    return "repeated" if caption in taken else ""


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return " ".join(lines[0].split()).strip("\"'`*“” ") if lines else ""


def _draws(key: str) -> list[float]:
    generator = random.Random(key)
    return [generator.random() for _ in range(MOST_NEW_TOKENS)]
