"""Captions by a language model in the place of the templates' texts, resumable batch by batch."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from stablerep import atomic, distributed, hub
from stablerep.config import UserError, fingerprint
from stablerep.runlog import progress
from stablerep.templates import llm
from stablerep.templates.config import PromptsConfig
from stablerep.templates.grammar import Grammar
from stablerep.templates.job import ClassPrompt

TRIES = 3

Caption = tuple[str, str]  # and why it is the template's text; "" where the model wrote it


def journal_of(config: PromptsConfig, prompts: Sequence[ClassPrompt], grammars: Sequence[Grammar]) -> Path:
    """The file beside --out that captions are added to until all are there: of this model, seed and prompts alone."""
    assert config.llm is not None
    weights = hub.hash_folder(hub.model_folder(llm.FLAG, config.llm))
    examples = {grammar.name: grammar.examples for grammar in grammars}
    made_of = [weights, config.seed, [prompt.prompt for prompt in prompts], examples, *llm.SETTINGS]
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
    taken = {*(prompt.prompt for prompt in prompts), *(caption for caption, _ in captions)}
    with distributed.start(config.device) as device:
        writer = llm.open_writer(config.llm, device)
        with progress("captions", len(prompts), "captions", start=len(captions)) as bar, journal.open("a") as file:
            while len(captions) < len(prompts):
                batch = prompts[len(captions) : len(captions) + config.batch_size]
                captions += (made := _batch(writer, batch, examples, taken, config))
                file.write(json.dumps(made) + "\n")
                file.flush()
                kept = sum(bool(why) for _, why in captions)
                bar.update(len(captions), f"{kept} the template's own" if kept else "")
    written = [dataclasses.replace(prompt, prompt=text) for prompt, (text, _) in zip(prompts, captions, strict=True)]
    return written, Counter(why for _, why in captions if why)


def _batch(
    writer: llm.Writer,
    prompts: Sequence[ClassPrompt],
    examples: Mapping[str, llm.Examples],  # of each template
    taken: set[str],
    config: PromptsConfig,
) -> list[Caption]:
    """A caption of each prompt; what is no use is asked again, TRIES times in all. Adds to taken."""
    captions = {row: (prompt.prompt, "") for row, prompt in enumerate(prompts)}
    open_rows = list(captions)
    for attempt in range(TRIES):
        asked = [(prompts[row].prompt, examples[prompts[row].template]) for row in open_rows]
        try:
            answers = writer.answers(asked, config.seed, attempt)
        except torch.OutOfMemoryError as error:
            device = writer.model.device
            raise UserError(
                f"--batch-size {config.batch_size} does not fit into the memory of {device}; give a smaller one"
            ) from error
        for row, answer in zip(open_rows, answers, strict=True):
            why = llm.why_unfit(answer, prompts[row].concept, taken)
            captions[row] = (prompts[row].prompt if why or answer is None else answer, why)
            taken.add(captions[row][0])
        open_rows = [row for row in open_rows if captions[row][1]]
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
    return [(caption, why) for line in whole.splitlines() for caption, why in json.loads(line)]
