"""What `stablerep-prompts` is asked to do, and what it makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stablerep.config import UserError, check_at_least

ENDINGS = (".txt", ".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Make prompts of a list of classes: equally many of each class and template, none twice.

    stablerep-prompts --translate PROMPTS --llm MODEL --out ENGLISH brings a prompts file into English.
    """

    classes: Path | None = None
    """Text file of classes, one a line: "ankle boot"."""

    translate: Path | None = None
    """Prompts file whose prompts in Japanese, Russian and other scripts --llm translates; rows and columns stay."""

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
        if (self.classes is None) == (self.translate is None):
            raise UserError("give --classes, a text file of classes, or --translate, a prompts file; one of them")
        if self.translate is not None and self.llm is None:
            raise UserError(f"--translate {self.translate} needs --llm, a language model that knows both languages")
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
