"""What is searched: a range or a list for each setting of painting, and the points of a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import optuna

from stablerep.config import UserError, check_choice, flag_of
from stablerep.generate.config import SCHEDULERS
from stablerep.prompts.grammar import read_grammar
from stablerep.search.config import SearchConfig

MIXED = "+"  # joins the templates of a mixture
LOWEST = {"guidance_scale": 0.0, "num_inference_steps": 1, "num_images_per_prompt": 1, "real_share": 0.0}
HIGHEST = {"guidance_scale": 100.0, "num_inference_steps": 1000, "num_images_per_prompt": 10_000, "real_share": 0.95}
WHOLE = {"num_inference_steps", "num_images_per_prompt"}
LISTS = ("scheduler", "negative_prompt", "template")
DECIMALS = 2  # of guidance and share: finer ones tell nothing
RECIPE = {"guidance_scale": 2.0, "num_inference_steps": 50, "num_images_per_prompt": 10, "real_share": 0.0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a trial paints and trains on."""

    guidance_scale: float
    num_inference_steps: int
    scheduler: str
    negative_prompt: str
    num_images_per_prompt: int
    real_share: float  # of the pictures in each batch of training
    template: str | None = None  # None: prompts come from a file
    seed: int = 0  # is added to the search's own

    def as_dict(self) -> dict[str, Any]:
        """By name, as search.json has it; what is not searched is left out."""
        return {name: value for name, value in asdict(self).items() if not (name == "template" and value is None)}

    def __str__(self) -> str:
        parts = [f"guidance {self.guidance_scale:g}", f"{self.num_inference_steps} steps {self.scheduler}"]
        parts += [f"without {self.negative_prompt!r}"] if self.negative_prompt else []
        parts += [self.template] if self.template else []
        parts += [f"{self.num_images_per_prompt} a prompt"]
        parts += [f"{self.real_share:.0%} real"] if self.real_share else []
        parts += [f"seed {self.seed}"] if self.seed else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Space:
    """Every trial that a search may make."""

    ranges: Mapping[str, tuple[float, float]]  # lowest and highest, of numbers
    choices: Mapping[str, tuple[str, ...]]
    axes: Mapping[str, tuple[Any, ...]]  # of a grid; {}: a search

    @property
    def grid(self) -> list[Settings]:
        """The points of a grid in the order they are tried; a seed over all values before the next seed."""
        if not self.axes:
            return []
        names = ["seed", *(name for name in self.axes if name != "seed")]
        points = itertools.product(*(self.axes[name] for name in names))
        start = self.start.as_dict()
        return [Settings(**(start | dict(zip(names, point, strict=True)))) for point in points]

    @property
    def start(self) -> Settings:
        """The recipe's settings, or the nearest that the ranges allow: what the others are to be better than."""
        values: dict[str, Any] = {
            name: _clip(RECIPE[name], *self.ranges[name], whole=name in WHOLE) for name in self.ranges
        }
        return Settings(**(values | {name: options[0] for name, options in self.choices.items()}))

    @property
    def most_images_per_prompt(self) -> int:
        return int(max(self.axes.get("num_images_per_prompt", (self.ranges["num_images_per_prompt"][1],))))

    @property
    def fewest_images_per_prompt(self) -> int:
        return int(min(self.axes.get("num_images_per_prompt", (self.ranges["num_images_per_prompt"][0],))))

    @property
    def most_real(self) -> float:
        return float(max(self.axes.get("real_share", (self.ranges["real_share"][1],))))

    def draw(self, trial: optuna.Trial) -> Settings:
        """The settings that the trial's sampler draws; of a trial that has some, those."""
        if self.axes:
            start = self.start.as_dict()
            named = {name: trial.suggest_categorical(name, values) for name, values in self.axes.items()}
            return Settings(**(start | named))
        drawn: dict[str, Any] = {}
        for name, (low, high) in self.ranges.items():
            log = low > 0 and name != "real_share"  # 1 to 2 matters as much as 4 to 8
            if name in WHOLE:
                drawn[name] = trial.suggest_int(name, int(low), int(high), log=log)
            else:
                drawn[name] = round(trial.suggest_float(name, low, high, log=log), DECIMALS)
        for name, values in self.choices.items():
            drawn[name] = trial.suggest_categorical(name, values)
        return Settings(**drawn)


def space_of(config: SearchConfig) -> Space:
    """Read the ranges, lists and grid of a config.

    Raises:
        UserError: a range that is none, an unknown scheduler or template, or a grid of what is no setting.
    """
    ranges = {name: _range(name, getattr(config, name)) for name in LOWEST}
    choices = {name: _choices(name, getattr(config, name)) for name in LISTS if name != "template" or config.classes}
    axes = dict(_axes(config.grid, [*ranges, *choices])) if config.grid else {}
    if axes:
        _refuse_ranges(config, axes)
        axes["seed"] = tuple(range(config.seeds))
    return Space(ranges, choices, axes)


def _range(name: str, given: Sequence[float]) -> tuple[float, float]:
    flag, shown = flag_of(name), " ".join(f"{value:g}" for value in given)
    if len(given) not in (1, 2):
        raise UserError(f"{flag} {shown} is no range; give its lowest and highest value, or one value")
    low, high = given[0], given[-1]
    _check_number(flag, name, low)
    _check_number(flag, name, high)
    if low > high:
        raise UserError(f"{flag} {shown} begins above its end; give {high:g} {low:g}")
    return low, high


def _check_number(flag: str, name: str, value: float) -> None:
    if not LOWEST[name] <= value <= HIGHEST[name]:
        raise UserError(f"{flag} must be between {LOWEST[name]:g} and {HIGHEST[name]:g}, got {value:g}")


def _choices(name: str, given: Sequence[str]) -> tuple[str, ...]:
    if name == "negative_prompt":
        given = given or ("",)
    if not given:
        raise UserError(f"{flag_of(name)} needs a value to choose")
    for value in given:
        _check_word(flag_of(name), name, value)
    return tuple(dict.fromkeys(given))


def _check_word(flag: str, name: str, value: str) -> None:
    if name == "scheduler":
        check_choice(flag, value, SCHEDULERS)
    if name == "template":
        for template in value.split(MIXED):
            read_grammar(template)


def _axes(words: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """`guidance_scale 1 2 scheduler ddim` as two axes."""
    given: dict[str, list[str]] = {}
    for word in words:
        if word.replace("-", "_") in names:
            values = given.setdefault(word.replace("-", "_"), [])
        elif not given:
            check_choice("--grid", word, names)
        else:
            values.append(word)
    for name, texts in given.items():
        if not texts:
            raise UserError(f"--grid {name} needs values, for instance --grid guidance_scale 1 2 4")
        if name in LISTS:
            for text in texts:
                _check_word(f"--grid {name}", name, text)
            yield name, tuple(dict.fromkeys(texts))
        else:
            yield name, tuple(dict.fromkeys(_number(name, text) for text in texts))


def _number(name: str, text: str) -> float:
    try:
        value: float = int(text) if name in WHOLE else float(text)
    except ValueError:
        raise UserError(
            f"--grid {name}: {text!r} is no {'whole ' if name in WHOLE else ''}number, and no name of a setting"
        ) from None
    _check_number(f"--grid {name}", name, value)
    return value


def _refuse_ranges(config: SearchConfig, axes: Mapping[str, Any]) -> None:
    """A grid has one value of what it does not name; a range that was asked for would go unseen."""
    for field in fields(config):
        given = getattr(config, field.name)
        if field.name in (*LOWEST, *LISTS) and field.name not in axes and given != field.default and len(given) > 1:
            shown = " ".join(map(str, given))
            raise UserError(
                f"{flag_of(field.name)} {shown} is more than one value; with --grid give one, or name it in --grid"
            )


def _clip(value: float, low: float, high: float, *, whole: bool) -> float:
    assert not math.isnan(value)
    value = min(max(value, low), high)
    return int(value) if whole else float(value)
