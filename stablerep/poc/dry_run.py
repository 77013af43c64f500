"""The bill before anything is bought: rates from one batch, a few steps and one small evaluation.

`stablerep-poc --dry-run` prints it; --budget-seconds and --budget-usd are turned into pictures by it.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stablerep import atomic
from stablerep.config import UserError, fingerprint
from stablerep.evaluate.run import evaluate
from stablerep.generate.dry_run import Estimate as GenerateEstimate
from stablerep.generate.dry_run import estimate as estimate_painting
from stablerep.poc.config import MOST_PICTURES, PocConfig
from stablerep.poc.ledger import JOULES_PER_KWH
from stablerep.poc.photos import TEST, TRAIN, Photo
from stablerep.poc.plan import EQUAL_COST, MOST_IMAGES_PER_PROMPT, Plan, make_plan
from stablerep.poc.settings import REAL, Settings
from stablerep.poc.split import FEWEST, Split, spread, write_table
from stablerep.prompts import Prompt
from stablerep.runlog import as_number
from stablerep.train.dry_run import estimate as estimate_training

RATES = "rates.json"
SAMPLED = 256  # photos of each side that the small evaluation takes, or two of each class


@dataclass(frozen=True)
class Rates:
    """What was measured on this machine."""

    images_per_second: float  # painted
    step_seconds: float  # of a training
    evaluate_seconds: float  # of one encoder
    device: str


@dataclass(frozen=True)
class Item:
    name: str
    kind: str
    images: int
    steps: int  # of training
    seconds: float


@dataclass(frozen=True)
class Bill:
    """What a plan will cost."""

    items: tuple[Item, ...]
    rates: Rates
    watts: float | None
    usd_per_hour: float | None
    adapts: bool = False

    @property
    def seconds(self) -> float:
        return sum(item.seconds for item in self.items)

    def __str__(self) -> str:
        rates, width = self.rates, max(len(item.name) for item in self.items)
        lines = [
            f"{item.name:{width}} {_count(item.images):>10} {_count(item.steps):>9} {as_number(item.seconds):>9}"
            f"{self._price(item.seconds)}"
            for item in self.items
        ]
        together = f"{'together':{width}} {'':>20} {as_number(self.seconds):>9}{self._price(self.seconds)}"
        measured = (
            f"measured on {rates.device}: {as_number(rates.images_per_second)} images/s painted, "
            f"{as_number(rates.step_seconds)} s a step of training, {as_number(rates.evaluate_seconds)} s an evaluation"
        )
        heading = f"{'':{width}} {'pictures':>10} {'steps':>9} {'seconds':>9}"
        heading += "" if self.watts is None else f" {'kWh':>9}"
        heading += "" if self.usd_per_hour is None else f" {'USD':>9}"
        besides = ["without adapting the generator, which stablerep-adapt --dry-run measures"] if self.adapts else []
        return "\n".join([heading, *lines, together, measured, *besides])

    def _price(self, seconds: float) -> str:
        kwh = "" if self.watts is None else f" {seconds * self.watts / JOULES_PER_KWH:>9.3g}"
        return kwh + ("" if self.usd_per_hour is None else f" {seconds / 3600 * self.usd_per_hour:>9,.2f}")


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def make_bill(plan: Plan, rates: Rates, config: PocConfig) -> Bill:
    """Painting once, then every arm trained and measured with every seed."""
    paint = plan.images / rates.images_per_second
    train = plan.steps * rates.step_seconds
    items = [Item("paint", "paint", plan.images, 0, paint)]
    several = sum(arm.kind == "hybrid" for arm in plan.arms) > 1
    for arm in plan.arms:
        if arm.is_trained:
            steps = plan.steps if arm.comparison != EQUAL_COST else round(plan.steps * (paint + train) / train)
            seconds = config.seeds * steps * rates.step_seconds
            items.append(Item(f"train {arm.name}", "train", arm.images, config.seeds * steps, seconds))
    looks = config.seeds * (len(plan.arms) + sum(several and arm.kind == "hybrid" for arm in plan.arms))
    items.append(Item("measure all", "evaluate", 0, 0, looks * rates.evaluate_seconds))
    return Bill(tuple(items), rates, config.watts, config.usd_per_hour, config.adapt is not None)


def measure_rates(config: PocConfig, settings: Settings, split: Split, prompts: Sequence[Prompt]) -> Rates:
    """Paint a batch, take a few steps on the real photos, measure an untrained encoder; nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = "".join(json.dumps({"prompt": prompt.text}) + "\n" for prompt in prompts if prompt.text)
        (place / "prompts.jsonl").write_text(rows)
        per_prompt = settings.images_per_prompt or 10
        painting = settings.painting(place / "prompts.jsonl", place / "painted", config.seed, per_prompt)
        painted = estimate_painting(painting)
        assert isinstance(painted, GenerateEstimate)
        write_table(place / "real.csv", split.of(TRAIN))
        step = estimate_training(settings.training(REAL, (str(place / "real.csv"),), place / "run", config.seed, 1))
        example = settings.example
        data, scale = _evaluation_sample(config, split, place)
        checkpoint = f"untrained:{example.arch}"
        looked = evaluate(settings.evaluating(checkpoint, data, place / "measured", config.seed, example.image_size))
    return Rates(
        painted.images_per_second * painted.workers, step.step_seconds, looked["seconds"] * scale, painted.device
    )


def _evaluation_sample(config: PocConfig, split: Split, place: Path) -> tuple[str, float]:
    """What the small evaluation is of, and how many times as long the whole one takes."""
    if config.measure_on:
        return config.measure_on, 1.0
    sample: list[Photo] = []
    for side in (TRAIN, TEST):
        photos = split.of(side, labelled=True)
        order = spread([photo.label for photo in photos], config.seed)
        fewest = FEWEST * len(split.classes)
        sample += [photos[row] for row in order[: max(SAMPLED, fewest)]]
    classes = {photo.label for photo in sample if photo.split == TRAIN}
    sample = [photo for photo in sample if photo.label in classes]
    write_table(place / "sample.csv", sample)
    whole = min(len(split.of(TRAIN, labelled=True)), config.max_train or MOST_PICTURES) + len(split.of(TEST))
    return str(place / "sample.csv"), max(1.0, whole / len(sample))


def kept_rates(out: Path, config: PocConfig, settings: Settings, split: Split, prompts: Sequence[Prompt]) -> Rates:
    """The rates that a folder was begun with: another measurement would pay for another number of pictures."""
    path = out / RATES
    of = fingerprint([asdict(settings), config.real, config.measure_on, len(split.photos), len(prompts)])
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("of") != of:  # none yet, or of other flags, whose budget paid for nothing
        kept = asdict(measure_rates(config, settings, split, prompts)) | {"of": of}
        out.mkdir(parents=True, exist_ok=True)
        atomic.write(path, json.dumps(kept, indent=1) + "\n")
    return Rates(**{name: value for name, value in kept.items() if name != "of"})


def affordable(
    config: PocConfig, settings: Settings, split: Split, prompts: Sequence[Prompt], classes: Sequence[str], rates: Rates
) -> int:
    """The most pictures that --budget-seconds, --budget-usd and --budget-pictures pay for together.

    Raises:
        UserError: they do not pay for training and measuring alone.
    """
    allowed = config.seconds_allowed
    usable = sum(bool(prompt.text) for prompt in prompts)
    most = min(config.budget_pictures or MOST_PICTURES, MOST_IMAGES_PER_PROMPT * usable)
    if math.isfinite(allowed):
        most = min(most, math.floor(allowed * rates.images_per_second))

    def seconds(pictures: int) -> float:
        try:
            plan = make_plan(config, settings, split, prompts, classes, pictures)
        except UserError:  # too few to begin with
            return 0.0
        return make_bill(plan, rates, config).seconds

    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if seconds(middle) <= allowed else (low, middle - 1)
    try:
        make_plan(config, settings, split, prompts, classes, low)
    except UserError as error:
        least = _fewest(config, settings, split, prompts, classes, max(1, low))
        flag = "--budget-usd" if config.budget_usd is not None else "--budget-seconds"
        needs = f"about {as_number(make_bill(least, rates, config).seconds)} s are needed" if least else str(error)
        raise UserError(
            f"{flag} {getattr(config, flag[2:].replace('-', '_')):g} pays for nothing: {needs}; raise it, or ask for "
            "fewer --seeds, --arms or --steps"
        ) from error
    return low


def _fewest(
    config: PocConfig, settings: Settings, split: Split, prompts: Sequence[Prompt], classes: Sequence[str], start: int
) -> Plan | None:
    """The smallest plan that can be made, to within a factor of two."""
    for pictures in (start * 2**power for power in range(1, 31)):
        try:
            return make_plan(config, settings, split, prompts, classes, pictures)
        except UserError:
            continue
    return None
