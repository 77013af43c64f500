"""Who is trained on what: which prompts are painted how often, which photos go along, how many steps."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stablerep import atomic
from stablerep.config import UserError
from stablerep.data.sampling import share_out
from stablerep.poc.config import PocConfig
from stablerep.poc.photos import TRAIN, Photo
from stablerep.poc.settings import REAL, RECIPE_IMAGES, SUPERVISED, SYNTHETIC, Settings
from stablerep.poc.split import Split, spread, write_table
from stablerep.prompts import Prompt, caption_key

MOST_IMAGES_PER_PROMPT = 10_000
EQUAL_PICTURES, EQUAL_COST, BASELINE = "equal_pictures", "equal_cost", "baseline"


@dataclass(frozen=True)
class Arm:
    """One kind of features that is measured; those of kind real, synthetic, hybrid and supervised are trained."""

    name: str
    kind: str
    comparison: str = BASELINE
    objective: str | None = None
    checkpoint: str | None = None  # of those that are not trained
    parts: int = 0  # how many parts of the painted pictures it is trained on
    photos: tuple[Photo, ...] = ()  # that it is trained on
    real_share: float = 0.0  # of a batch
    synthetic_images: int = 0

    @property
    def is_trained(self) -> bool:
        return self.objective is not None

    @property
    def images(self) -> int:
        return self.synthetic_images + len(self.photos)


@dataclass(frozen=True)
class Plan:
    """What is painted and trained. Pictures are painted in parts, so that a hybrid takes the first few of them."""

    prompts: tuple[tuple[Prompt, ...], ...]  # of each part
    images_per_prompt: int
    steps: int  # of each training at equal pictures
    arms: tuple[Arm, ...]

    @property
    def images(self) -> int:
        return self.images_per_prompt * sum(map(len, self.prompts))

    def prompts_file(self, out: Path, part: int) -> Path:
        return out / "prompts" / f"{self.part_name(part)}.jsonl"

    def painted(self, out: Path, part: int) -> Path:
        return out / "painted" / self.part_name(part)

    @staticmethod
    def part_name(part: int) -> str:
        return f"part-{part + 1}"

    def table(self, out: Path, arm: Arm) -> Path:
        return out / "tables" / f"{arm.name}.csv"

    def data_of(self, arm: Arm, out: Path) -> tuple[str, ...]:
        """What stablerep-train takes; weights only where they are not equal."""
        sources = [self.painted(out, part) for part in range(arm.parts)]
        sources += [self.table(out, arm)] if arm.photos else []
        weights = self.weights_of(arm)
        if max(weights) - min(weights) < 1e-9:
            return tuple(map(str, sources))
        return tuple(f"{source}:{weight:.6g}" for source, weight in zip(sources, weights, strict=True))

    def weights_of(self, arm: Arm) -> list[float]:
        """Of each part by the number of its prompts, of the photos their share."""
        sizes = [len(prompts) for prompts in self.prompts[: arm.parts]]
        weights = [(1 - arm.real_share) * size / sum(sizes) for size in sizes]
        return weights + ([arm.real_share if sizes else 1.0] if arm.photos else [])

    def write(self, out: Path) -> None:
        """Write the prompts of each part and the table of each arm's photos."""
        (out / "prompts").mkdir(parents=True, exist_ok=True)
        for part, prompts in enumerate(self.prompts):
            atomic.write(self.prompts_file(out, part), "".join(map(_line, prompts)))
        for arm in self.arms:
            if arm.photos:
                write_table(self.table(out, arm), arm.photos)


def match_classes(prompts: Sequence[Prompt], classes: Sequence[str], path: Path) -> list[str]:
    """The class of each prompt: its label, or the longest name of a class in its text; "" where there is none.

    Raises:
        UserError: no prompt is of any class.
    """
    names = sorted(classes, key=len, reverse=True)
    patterns = {name: _name_in_text(name) for name in names}
    by_key = {caption_key(name): name for name in names}
    found = []
    for prompt in prompts:
        if prompt.label is not None:
            found.append(by_key.get(caption_key(prompt.label), ""))
        else:
            text = _spaced(prompt.text)
            found.append(next((name for name in names if patterns[name].search(text)), ""))
    if not any(found):
        how = "has a label that is" if prompts[0].label is not None else "names"
        few = ", ".join(list(classes)[:10]) + (", ..." if len(classes) > 10 else "")
        raise UserError(
            f"--prompts {path}: none of {len(prompts)} prompts {how} a class of the real photos ({few}); give the "
            "class of each prompt in a column label"
        )
    return found


def _spaced(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", caption_key(text))


def _name_in_text(name: str) -> re.Pattern[str]:
    """The name as a word of its own, or with a plural's ending; in scripts without blanks anywhere."""
    escaped = re.escape(_spaced(name))
    return re.compile(rf"(?<!\w){escaped}(e?s)?(?!\w)" if name.isascii() else escaped)


def make_plan(
    config: PocConfig, settings: Settings, split: Split, prompts: Sequence[Prompt], classes: Sequence[str], budget: int
) -> Plan:
    """The plan that paints at most `budget` pictures.

    Args:
        prompts: all of the file; those without text are left out.
        classes: of each prompt, or "".

    Raises:
        UserError: the budget is too small, or there are too few prompts for the shares that are asked for.
    """
    usable = [row for row, prompt in enumerate(prompts) if prompt.text]
    per_prompt = settings.images_per_prompt
    if per_prompt is None:
        per_prompt = max(RECIPE_IMAGES, min(MOST_IMAGES_PER_PROMPT, budget // len(usable)))
    order = spread([classes[row] for row in usable], config.seed)[: budget // per_prompt]
    shares = sorted({1 - share for share in config.real_share}) if "hybrid" in config.arms else []
    cuts = sorted({0, *(round(share * len(order)) for share in shares), len(order)})
    if len(cuts) < len(shares) + 2:
        need = (math.ceil(1 / min([*shares, *(1 - share for share in shares)])) if shares else 1) * per_prompt
        raise UserError(
            f"the budget pays for {budget} pictures, {len(order)} prompts of {per_prompt}, too few"
            + (f" for the --real-share asked for; about {need} are needed" if len(order) else f"; {need} are needed")
            + (f": --prompts has {len(usable)}" if len(usable) <= len(order) else "")
        )
    parts = tuple(
        tuple(prompts[usable[place]] for place in sorted(order[start:end])) for start, end in itertools.pairwise(cuts)
    )
    images = per_prompt * len(order)
    example = settings.example
    steps = example.steps or math.ceil(example.epochs * len(order) * example.views / example.batch_size)
    plan = Plan(parts, per_prompt, steps, tuple(_arms(config, settings, split, images, per_prompt, cuts)))
    for arm in plan.arms:
        if arm.objective == SYNTHETIC:
            share_out(example.batch_size // example.views, plan.weights_of(arm))  # refuses now, not after painting
    return plan


def _arms(
    config: PocConfig, settings: Settings, split: Split, images: int, per_prompt: int, cuts: Sequence[int]
) -> list[Arm]:
    train = split.of(TRAIN)
    drawn = [train[row] for row in spread([photo.label for photo in train], config.seed)]
    arch, whole = settings.example.arch, len(cuts) - 1
    photos, labelled = tuple(drawn[:images]), tuple(split.of(TRAIN, labelled=True))
    arms = [Arm("pixels", "pixels", checkpoint="pixels"), Arm("untrained", "untrained", checkpoint=f"untrained:{arch}")]
    arms += [Arm(_folder_name(name), "pretrained", checkpoint=name) for name in config.pretrained]
    if labelled:
        arms.append(Arm("supervised", "supervised", EQUAL_PICTURES, SUPERVISED, photos=labelled, real_share=1.0))
    arms.append(Arm("real", "real", EQUAL_PICTURES, REAL, photos=photos, real_share=1.0))
    if config.equal_cost:
        arms.append(Arm("real-longer", "real", EQUAL_COST, REAL, photos=photos, real_share=1.0))
    arms.append(Arm("synthetic", "synthetic", EQUAL_PICTURES, SYNTHETIC, parts=whole, synthetic_images=images))
    for share in sorted(config.real_share) if "hybrid" in config.arms else ():
        part = list(cuts).index(round((1 - share) * cuts[-1]))
        painted = cuts[part] * per_prompt
        arms.append(
            Arm(
                f"hybrid-{share:g}", "hybrid", EQUAL_PICTURES, SYNTHETIC, parts=part,
                photos=tuple(drawn[: images - painted]), real_share=share, synthetic_images=painted,
            )
        )  # fmt: skip
    return [arm for arm in arms if arm.kind in config.arms]


def _folder_name(name: str) -> str:
    return "pretrained-" + re.sub(r"[^\w.-]+", "-", Path(name).name if Path(name).exists() else name)


def _line(prompt: Prompt) -> str:
    fields = {
        "prompt": prompt.text, "label": prompt.label, "guidance_scale": prompt.guidance_scale,
        "negative_prompt": "-" if prompt.negative_prompt == "" else prompt.negative_prompt, "seed": prompt.seed,
    }  # fmt: skip
    kept = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False) + "\n"
