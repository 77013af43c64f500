"""A local language model rewrites the templates' texts into captions (as SynCLR does, arXiv 2312.17742).

The template's text is what the model is asked to rewrite, and what stays where no answer is of use. Captions are kept
in a journal batch by batch, so that a stopped run goes on.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor

from stablerep import atomic, distributed, hub
from stablerep.config import UserError, fingerprint
from stablerep.prompts.config import ClassPrompt, PromptsConfig
from stablerep.prompts.grammar import Grammar
from stablerep.runlog import progress

FLAG = "--llm"
TRIES = 3
TEMPERATURE, TOP_P = 0.8, 0.95
MOST_NEW_TOKENS = 80
MOST_WORDS = 40  # Stable Diffusion takes 77 tokens, about 55 words
INSTRUCTION = (
    "Rewrite each description as the caption of one photo, in at most 30 words. Keep the name of its subject word for "
    "word, invent what else is seen, and answer with the caption alone, on one line."
)
SETTINGS = (TEMPERATURE, TOP_P, MOST_NEW_TOKENS, MOST_WORDS, INSTRUCTION)  # what captions follow from, besides
Examples = Sequence[tuple[str, str]]  # a template's text, and a caption of it


class Caption(NamedTuple):
    text: str
    why_template: str = ""  # why it is the template's text; "" where the model wrote it


def journal_of(config: PromptsConfig, prompts: Sequence[ClassPrompt], grammars: Sequence[Grammar]) -> Path:
    """The file beside --out that captions are added to until all are there: of this model, seed and prompts alone."""
    assert config.llm is not None
    weights = hub.hash_folder(hub.model_folder(FLAG, config.llm))
    examples = {grammar.name: grammar.examples for grammar in grammars}
    made_of = [weights, config.seed, [prompt.prompt for prompt in prompts], examples, *SETTINGS]
    out = Path(config.out)
    return out.with_name(f"{out.name}.{fingerprint(made_of)}.partial")


def write_captions(
    config: PromptsConfig, prompts: Sequence[ClassPrompt], grammars: Sequence[Grammar], journal: Path
) -> tuple[list[ClassPrompt], Counter[str]]:
    """The prompts in the language model's words, no two alike, and by reason how many keep the template's.

    Raises:
        UserError: no such model, or a batch that does not fit into the device's memory.
    """
    assert config.llm is not None
    examples = {grammar.name: grammar.examples for grammar in grammars}
    captions = _read(journal)
    taken = {*(prompt.prompt for prompt in prompts), *(caption.text for caption in captions)}
    with distributed.start(config.device) as device:
        model = open_model(config.llm, device)
        with progress("captions", len(prompts), "captions", start=len(captions)) as bar, journal.open("a") as file:
            while len(captions) < len(prompts):
                batch = prompts[len(captions) : len(captions) + config.batch_size]
                captions += (made := _batch(model, batch, examples, taken, config))
                file.write(json.dumps(made) + "\n")
                file.flush()
                kept = sum(bool(caption.why_template) for caption in captions)
                bar.update(len(captions), f"{kept} the template's own" if kept else "")
    written = [dataclasses.replace(each, prompt=caption.text) for each, caption in zip(prompts, captions, strict=True)]
    return written, Counter(caption.why_template for caption in captions if caption.why_template)


def _batch(
    model: CaptionModel,
    prompts: Sequence[ClassPrompt],
    examples: Mapping[str, Examples],  # of each template
    taken: set[str],
    config: PromptsConfig,
) -> list[Caption]:
    """A caption of each prompt; one that is of no use is asked for again, TRIES times in all. Adds to taken."""
    captions = {row: Caption(prompt.prompt) for row, prompt in enumerate(prompts)}
    open_rows = list(captions)
    for attempt in range(TRIES):
        asked = [(prompts[row].prompt, examples[prompts[row].template]) for row in open_rows]
        try:
            answers = model.answers(asked, config.seed, attempt)
        except torch.OutOfMemoryError as error:
            device = model.model.device
            raise UserError(
                f"--batch-size {config.batch_size} does not fit into the memory of {device}; give a smaller one"
            ) from error
        for row, answer in zip(open_rows, answers, strict=True):
            why = why_unfit(answer, prompts[row].concept, taken)
            captions[row] = Caption(prompts[row].prompt if why or answer is None else answer, why)
            taken.add(captions[row].text)
        open_rows = [row for row in open_rows if captions[row].why_template]
        if not open_rows:
            break
    return list(captions.values())


def _read(journal: Path) -> list[Caption]:
    """What an earlier call wrote; a line that it was stopped in is taken away."""
    if not journal.exists():
        return []
    text = journal.read_text()
    whole = text[: text.rfind("\n") + 1]
    atomic.write(journal, whole)
    return [Caption(*each) for line in whole.splitlines() for each in json.loads(line)]


@dataclass(frozen=True)
class CaptionModel:
    """A causal language model of transformers on one device."""

    model: Any
    tokenizer: Any
    ends: list[int]  # tokens that end an answer: end-of-text, and those with a line break
    instruction: str = INSTRUCTION

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
                do_sample=False,  # _Nucleus leaves one token to take
                eos_token_id=self.ends,
                pad_token_id=self.tokenizer.pad_token_id,
            ),
            logits_processor=[_Nucleus(torch.tensor(draws, dtype=torch.float64, device=self.model.device), start)],
        )[:, start:].tolist()
        ended = [bool({*tokens} & {*self.ends}) for tokens in made]
        lines = [_first_line(text) for text in self.tokenizer.batch_decode(made, skip_special_tokens=True)]
        return [line if end else None for line, end in zip(lines, ended, strict=True)]

    def _question(self, text: str, examples: Examples) -> str:
        if self.tokenizer.chat_template is None:
            shown = "".join(f"{given} => {caption}\n" for given, caption in examples)
            return f"{self.instruction}\n\n{shown}{text} =>"
        turns = [turn for given, caption in examples for turn in (("user", given), ("assistant", caption))]
        turns.append(("user", text))
        turns[0] = ("user", f"{self.instruction}\n\n{turns[0][1]}")  # not every template knows a system's turn
        messages = [{"role": role, "content": content} for role, content in turns]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )


class _Nucleus(LogitsProcessor):
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


def open_model(name: str, device: torch.device, instruction: str = INSTRUCTION) -> CaptionModel:
    """Open a folder of transformers or a hub name; on the CPU in float32, else in the precision it was saved in.

    Raises:
        UserError: nothing there, or no causal language model of safetensors.
    """
    folder = hub.model_folder(FLAG, name)
    tokenizer = hub.load(FLAG, AutoTokenizer, folder)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{FLAG} {name}: its tokenizer has no eos_token, which ends an answer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = torch.float32 if device.type == "cpu" else "auto"
    loaded = hub.load_model(FLAG, AutoModelForCausalLM, folder, dtype=dtype).to(device)
    ends = loaded.generation_config.eos_token_id
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    pieces = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    breaks = {number for number, piece in enumerate(pieces) if len(f"{piece}.".splitlines()) > 1}
    return CaptionModel(loaded, tokenizer, sorted(known | breaks), instruction)


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
