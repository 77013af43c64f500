"""Class lists to prompt files: `stablerep-prompts`.

Neither torch nor transformers is imported here: `--help` and a wrong flag must not wait seconds for them.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stablerep import atomic
from stablerep.config import UserError, check_at_least
from stablerep.prompts.grammar import Grammar, read_grammar

ENDINGS = (".txt", ".csv", ".jsonl")
# Up to here all numbers are shuffled; above, numbers are drawn and those seen before skipped, which needs no list.
SHUFFLED = 1 << 16


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Make prompts of a list of classes: equally many of each class and template, none twice."""

    classes: Path
    """Text file of classes, one a line: "ankle boot"."""

    out: Path
    """The prompts: .txt, or .csv or .jsonl with the class and the template beside each."""

    template: tuple[str, ...] = ("concept", "concept_background", "concept_relation")
    """concept, concept_background, concept_relation, concept_look (short, in the embedded model's own words), or YAML
    files of your own (templates: [...], wildcards: {...}, for --llm also examples: {text: caption})."""

    num_prompts: int = 1000
    """How many in all. More of them with the same seed begin with the same ones."""

    seed: int = 0
    """Another seed, other prompts."""

    llm: str | None = None
    """Causal language model of transformers, a folder or a hub name, that rewrites each prompt as a caption. What is
    empty, too long, a repetition or does not name the class is asked again twice, then stays the template's text."""

    batch_size: int = 16
    """Captions that --llm writes at once."""

    device: str = "auto"
    """Of --llm: auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        check_at_least(self, num_prompts=1, batch_size=1)
        if not self.template:
            raise UserError("--template needs a name, for instance concept_background")
        if Path(self.out).suffix.lower() not in ENDINGS:
            raise UserError(f"--out {self.out}: unknown ending; use one of {', '.join(ENDINGS)}")
        names = (self.template,) if isinstance(self.template, str) else tuple(self.template)
        object.__setattr__(self, "template", names)


@dataclass(frozen=True)
class ClassPrompt:
    """One prompt, its class and its template."""

    prompt: str
    concept: str
    template: str


def write_prompts(config: PromptsConfig) -> str:
    """Write the prompts of a class list; returns a line on what was written.

    Raises:
        UserError: no classes, a bad template, or fewer different prompts than asked for.
    """
    classes = read_classes(Path(config.classes))
    grammars = [read_grammar(name) for name in config.template]
    prompts = list(itertools.islice(make_prompts(classes, grammars, config.seed), config.num_prompts))
    if len(prompts) < config.num_prompts:
        raise UserError(
            f"--num-prompts {config.num_prompts} is more than the {len(prompts)} different prompts of these classes "
            "and templates; lower it or add to either"
        )
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    summary = f"{len(prompts)} prompts of {len(classes)} classes in {out}"
    if config.llm is None:
        atomic.write(out, _lines(prompts, out.suffix.lower()))
        return summary
    from stablerep.prompts.captions import journal_of, write_captions  # torch and transformers: seconds

    journal = journal_of(config, prompts, grammars)
    captions, kept = write_captions(config, prompts, grammars, journal)
    atomic.write(out, _lines(captions, out.suffix.lower()))
    journal.unlink()
    if not kept:
        return summary
    reasons = ", ".join(f"{count} {why}" for why, count in sorted(kept.items()))
    return f"{summary}; {kept.total()} are the template's own, where --llm gave nothing better: {reasons}"


def read_classes(path: Path) -> list[str]:
    """Classes, one a line; empty lines and repeated classes are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"--classes {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path} cannot be read: {' '.join(str(error).split())}") from error
    classes = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    if not classes:
        raise UserError(f"--classes {path} is empty; write one class a line")
    return classes


def make_prompts(classes: Sequence[str], grammars: Sequence[Grammar], seed: int) -> Iterator[ClassPrompt]:
    """All different prompts: one of each class, then the next of each, and so on.

    A class takes its templates in turn. What is drawn for a class depends on the seed, the class and the template
    alone, not on the other classes.
    """
    seen: set[str] = set()
    streams = [_of_class(concept, grammars, seed, seen) for concept in classes]
    while streams:
        left = []
        for stream in streams:
            if (prompt := next(stream, None)) is not None:
                left.append(stream)
                yield prompt
        streams = left


def _of_class(concept: str, grammars: Sequence[Grammar], seed: int, seen: set[str]) -> Iterator[ClassPrompt]:
    draws = [(grammar, _draw(grammar, concept, seed)) for grammar in grammars]
    while draws:
        left = []
        for grammar, texts in draws:
            text = next((text for text in texts if text not in seen), None)
            if text is not None:
                seen.add(text)
                left.append((grammar, texts))
                yield ClassPrompt(text, concept, grammar.name)
        draws = left


def _draw(grammar: Grammar, concept: str, seed: int) -> Iterator[str]:
    """All texts of a concept in an order that the seed shuffles."""
    generator = random.Random(f"{seed}\n{grammar.name}\n{concept}")
    total = grammar.num_texts
    if total <= SHUFFLED:
        for number in generator.sample(range(total), total):
            yield grammar.text(number, concept)
        return
    drawn: set[int] = set()
    while len(drawn) < total:
        number = generator.randrange(total)
        if number not in drawn:
            drawn.add(number)
            yield grammar.text(number, concept)


def _lines(prompts: Sequence[ClassPrompt], ending: str) -> str:
    if ending == ".txt":
        return "".join(prompt.prompt + "\n" for prompt in prompts)
    rows = [{"prompt": each.prompt, "class": each.concept, "template": each.template} for each in prompts]
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
