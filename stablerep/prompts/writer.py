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
from pathlib import Path

from stablerep import atomic
from stablerep.config import UserError, check_folder
from stablerep.prompts.config import ClassPrompt, PromptsConfig
from stablerep.prompts.encoding import EncodingError, decode
from stablerep.prompts.grammar import Grammar, read_grammar

# Up to here all numbers are shuffled; above, numbers are drawn and those seen before skipped, which needs no list.
SHUFFLED = 1 << 16


def write_prompts(config: PromptsConfig) -> str:
    """Write the prompts of a class list, or those of a file in English; returns a line on what was written.

    Raises:
        UserError: no classes, a bad template, or fewer different prompts than asked for.
    """
    out = Path(config.out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the name of a file in it: {out / 'prompts.txt'}")
    check_folder("--out", out.parent)
    if config.translate is not None:
        from stablerep.prompts.translate import translate_prompts  # torch and transformers: seconds

        out.parent.mkdir(parents=True, exist_ok=True)
        return translate_prompts(config)
    assert config.classes is not None
    classes = read_classes(Path(config.classes))
    grammars = [read_grammar(name) for name in config.template]
    prompts = list(itertools.islice(make_prompts(classes, grammars, config.seed), config.num_prompts))
    if len(prompts) < config.num_prompts:
        raise UserError(
            f"--num-prompts {config.num_prompts} is more than the {len(prompts)} different prompts of these classes "
            "and templates; lower it or add to either"
        )
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
        lines = decode(path.read_bytes()).splitlines()
    except FileNotFoundError as error:
        raise UserError(f"--classes {path} does not exist") from error
    except EncodingError as error:
        raise UserError(f"--classes {path} {error}; it is probably {error.likely}: save it as UTF-8") from error
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
