"""Templates with wildcards: "a photo of {a concept} {place}" and a list of words for each wildcard.

{a name} puts "a" or "an" before what {name} becomes. Words may hold wildcards themselves. Every text that a template
can become has a number, so that texts are drawn without making them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from stablerep.config import UserError, check_choice

BUILT_IN = ("concept", "concept_background", "concept_relation", "concept_look")
CONCEPT = "concept"
WILDCARD = re.compile(r"\{(a )?([^{}]*)\}")
# "a unit", "a European", "an hour": sound counts, not spelling. The rest of English is left to the writer.
SOUNDS_LIKE_YOU = re.compile(r"(uni|use|usu|uti|eu|ewe|one\b|once\b|ura|uku)", re.IGNORECASE)
SILENT_H = re.compile(r"(hour|honest|honour|honor|heir)", re.IGNORECASE)


@dataclass(frozen=True)
class Grammar:
    """The templates of one file and the words of their wildcards."""

    name: str
    templates: tuple[str, ...]
    wildcards: Mapping[str, tuple[str, ...]]
    examples: tuple[tuple[str, str], ...] = ()  # a text, and a caption that a language model might make of it

    @cached_property
    def num_texts(self) -> int:
        """How many texts there are of one concept, counting a text again for each derivation."""
        return self._count(self.templates)

    def text(self, number: int, concept: str) -> str:
        """Text number 0 .. num_texts - 1 of a concept."""
        text, left = self._pick(self.templates, number, concept)
        assert left == 0, number
        return " ".join(text.split())

    def _count(self, choices: Sequence[str]) -> int:
        return sum(math.prod(self._sizes[name] for _, name in WILDCARD.findall(choice)) for choice in choices)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Texts of each wildcard; wildcards are counted after those in their words (read_grammar found no circle)."""
        sizes = {CONCEPT: 1}
        while len(sizes) <= len(self.wildcards):
            for name, words in self.wildcards.items():
                inner = {inner for word in words for _, inner in WILDCARD.findall(word)}
                if name not in sizes and inner <= sizes.keys():
                    sizes[name] = sum(math.prod(sizes[each] for _, each in WILDCARD.findall(word)) for word in words)
        return sizes

    def _pick(self, choices: Sequence[str], number: int, concept: str) -> tuple[str, int]:
        """The choice that number % count names, and what is left of number for the next wildcard."""
        left, number = divmod(number, self._count(choices))
        for choice in choices:
            size = self._count([choice])
            if number < size:
                break
            number -= size

        def fill(match: re.Match[str]) -> str:
            nonlocal number
            article, name = match.groups()
            words = concept
            if name != CONCEPT:
                words, number = self._pick(self.wildcards[name], number, concept)
            return with_article(words) if article else words

        return WILDCARD.sub(fill, choice), left


def with_article(words: str) -> str:
    """ "boot" to "a boot", "ankle boot" to "an ankle boot"."""
    vowel = words[:1].lower() in tuple("aeiou") and not SOUNDS_LIKE_YOU.match(words)
    return f"{'an' if vowel or SILENT_H.match(words) else 'a'} {words}"


def read_grammar(name: str) -> Grammar:
    """A built-in template by name, or a YAML file of templates and wildcards.

    Raises:
        UserError: no such template, or a file that makes no prompts.
    """
    path = Path(name)
    if path.suffix.lower() not in (".yaml", ".yml"):
        check_choice("--template", name, BUILT_IN)
        path = Path(__file__).parent / "templates" / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--template {name} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not set(content) <= {"templates", "wildcards", "examples"}:
        raise UserError(f"--template {name} must hold `templates:`, a list, and `wildcards:`, a list of words for each")
    wildcards = content.get("wildcards") or {}
    if not isinstance(wildcards, dict):
        raise UserError(f"--template {name}: wildcards must be a mapping of a name to a list of words")
    examples = content.get("examples") or {}
    if not isinstance(examples, dict) or not all(isinstance(word, str) for pair in examples.items() for word in pair):
        raise UserError(f"--template {name}: examples must be a mapping of a text to a caption of it")
    grammar = Grammar(
        name=path.stem,
        templates=_words(name, "templates", content.get("templates")),
        wildcards={str(key): _words(name, f"wildcard {key}", words) for key, words in wildcards.items()},
        examples=tuple((" ".join(text.split()), " ".join(caption.split())) for text, caption in examples.items()),
    )
    _check(name, grammar)
    return grammar


def _words(name: str, what: str, words: Any) -> tuple[str, ...]:
    if not isinstance(words, list) or not words or not all(isinstance(word, str | int | float) for word in words):
        raise UserError(f"--template {name}: {what} must be a list of at least one text")
    return tuple(dict.fromkeys(str(word) for word in words))


def _check(name: str, grammar: Grammar) -> None:
    if CONCEPT in grammar.wildcards:
        raise UserError(f"--template {name}: the wildcard concept is the class itself; call the list something else")
    for template in grammar.templates:
        if CONCEPT not in (inner for _, inner in WILDCARD.findall(template)):
            raise UserError(f"--template {name}: {template!r} has no {{concept}}; each template must name the class")
    for text in (*grammar.templates, *(word for words in grammar.wildcards.values() for word in words)):
        if any(mark in WILDCARD.sub("", text) for mark in "{}"):
            raise UserError(f"--template {name}: {text!r} has a brace without its other half")
        for _, inner in WILDCARD.findall(text):
            if inner != CONCEPT:
                check_choice(f"--template {name}: wildcard", inner, grammar.wildcards)
    for wildcard in grammar.wildcards:
        _refuse_circle(name, grammar, (wildcard,))


def _refuse_circle(name: str, grammar: Grammar, above: tuple[str, ...]) -> None:
    for inner in {inner for word in grammar.wildcards[above[-1]] for _, inner in WILDCARD.findall(word)} - {CONCEPT}:
        if inner in above:
            raise UserError(f"--template {name}: wildcards lead in a circle: {' > '.join((*above, inner))}")
        _refuse_circle(name, grammar, (*above, inner))
