"""What a search is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stablerep.config import FirstLook, UserError, check_at_least, check_choice, flag_of

SCORES = ("train", "proxy")
MEASURES = ("linear_top1", "knn_top1")
PROXIES = ("frechet", "agreement")
BUDGETS = ("budget_pictures", "budget_seconds", "budget_usd")
FEWEST_OF_A_CLASS = 4  # photos: two to learn from, two to be measured on


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Search the settings of painting that train the best encoder, within a budget.

    A trial paints, trains for a short time and measures the encoder on training photos of --real kept aside, never on
    test photos. A range is LOW HIGH, or one value. The same command goes on; several at once share the trials.
    """

    FOLDERS: ClassVar = "What to paint, and what to measure on"

    prompts: FirstLook[Path | None] = None
    """File of prompts for stablerep-gen. Labels in it must name classes of --real."""

    classes: FirstLook[Path | None] = None
    """Or a file of classes, one a line; --template makes prompts."""

    num_prompts: int = 100
    """--classes: prompts of a trial."""

    real: FirstLook[str]
    """Labelled real photos: a --data of stablerep-eval."""

    max_real: int | None = None
    """Use at most this many training photos of it, as even over the classes as they allow."""

    validation_share: float = 0.5
    """The share of these photos, of each class, that a trial is measured on; the others train probe and encoder. A
    --real with a split train, validation and test keeps its own."""

    out: FirstLook[Path]
    """Folder of search.json, best.yaml, trials/."""

    BUDGET: ClassVar = "Budget: no trial begins that may not fit"

    budget_pictures: FirstLook[int | None] = None
    """Pictures painted in all trials together."""

    budget_seconds: FirstLook[float | None] = None
    """Seconds of all workers together."""

    budget_usd: FirstLook[float | None] = None
    """Or their price, at --usd-per-hour."""

    usd_per_hour: float | None = None
    """What a worker's machine costs."""

    trials: FirstLook[int | None] = None
    """At most so many trials."""

    SPACE: ClassVar = "What is searched, by stablerep-gen's own names"

    guidance_scale: FirstLook[tuple[float, ...]] = (1.0, 8.0)
    """Range."""

    num_inference_steps: FirstLook[tuple[int, ...]] = (10, 50)
    """Range."""

    scheduler: FirstLook[tuple[str, ...]] = ("ddim", "dpmsolver++", "euler")
    """Those to choose from."""

    negative_prompt: tuple[str, ...] = ()
    """Negative prompts to choose from; "" among them is none. If not given, there is none."""

    template: tuple[str, ...] = ("concept", "concept_background", "concept+concept_background")
    """--classes: mixtures of templates to choose from, as A+B; see stablerep-prompts --template."""

    num_images_per_prompt: FirstLook[tuple[int, ...]] = (4, 12)
    """Range."""

    real_share: FirstLook[tuple[float, ...]] = (0.0, 0.5)
    """Range of real photos' share in each batch."""

    grid: FirstLook[tuple[str, ...]] = ()
    """No search but these: guidance_scale 1 2 4. Every combination where several settings are named; the others keep
    their one value, or else the recipe's. Guidance gets a chart, guidance.png."""

    seeds: int = 1
    """--grid: how often each combination is painted and trained, with other seeds."""

    SCORE: ClassVar = "How a trial is scored"

    score: FirstLook[str] = "train"
    """train (short training, then a probe) or proxy (the pictures compared with the photos; no training)."""

    measure: str = "linear_top1"
    """--score train: linear_top1 or knn_top1 of the validation photos, %."""

    proxy: str = "frechet"
    """frechet: how near the pictures' features lie to the photos'. agreement: how many pictures their nearest photos
    name as their prompt's label. With --score train it is computed beside the score, to say how well it foretells."""

    features: str = "pixels"
    """The encoder of the proxy's features: a --checkpoint of stablerep-eval. Better ones foretell better."""

    calibration_trials: int = 6
    """--score proxy: so many first trials are trained too, which tells how well the proxy foretells."""

    prune: bool = True
    """End a trial after a third of its training where its features then are among the worst third. Not with --grid."""

    WORK: ClassVar = "How a trial is painted and trained"

    model: FirstLook[str | None] = None
    """What paints, as for stablerep-gen; the embedded default if not given."""

    generate: Path | None = None
    """YAML file of more of stablerep-gen's flags: image_size, engine, batch_size."""

    train: FirstLook[str | None] = None
    """YAML file of stablerep-train's flags, with steps: 200 or so; or a preset. If not given, 120 steps of a resnet10t
    at 32 pixels: enough for the embedded default."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    seed: int = 0
    """Draws the split, the trials, and all in them."""

    dry_run: FirstLook[bool] = False
    """Measure one trial, say how many the budget allows."""

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "num_inference_steps", "scheduler", "negative_prompt", "template",
                     "num_images_per_prompt", "real_share", "grid"):  # fmt: skip
            value = getattr(self, name)
            many = tuple(value) if isinstance(value, list | tuple) else (value,)
            object.__setattr__(self, name, tuple(map(str, many)) if name == "grid" else many)
        if (self.prompts is None) == (self.classes is None):
            raise UserError("give --prompts, a file of prompts, or --classes, a text file of classes; one of them")
        if not self.real:
            raise UserError("--real is empty; give a labelled set of real photos")
        check_choice("--score", self.score, SCORES)
        check_choice("--measure", self.measure, MEASURES)
        check_choice("--proxy", self.proxy, PROXIES)
        check_at_least(self, num_prompts=1, max_real=1, seeds=1, calibration_trials=0, seed=0)
        if not 0 < self.validation_share < 1:
            raise UserError(f"--validation-share must be between 0 and 1, got {self.validation_share}")
        if self.seeds > 1 and not self.grid:
            raise UserError(f"--seeds {self.seeds} goes with --grid; a search draws new settings instead")
        self._check_budget()

    def _check_budget(self) -> None:
        for name in (*BUDGETS, "trials"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{flag_of(name)} {value} is a budget of nothing; give a number above 0")
        if not self.grid and all(getattr(self, name) is None for name in (*BUDGETS, "trials")):
            raise UserError("a search needs an end: --budget-pictures, --budget-seconds, --budget-usd or --trials")
        if self.usd_per_hour is not None and not 0 < self.usd_per_hour < math.inf:
            raise UserError(f"--usd-per-hour {self.usd_per_hour} must be a price above 0")
        if self.budget_usd is not None and self.usd_per_hour is None:
            raise UserError(f"--budget-usd {self.budget_usd:g} needs --usd-per-hour, what the machine costs")
