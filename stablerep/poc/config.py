"""What a proof of concept is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stablerep.config import FirstLook, UserError, check_above_zero, check_at_least, check_choice, flag_of

ARMS = ("pixels", "untrained", "pretrained", "supervised", "real", "synthetic", "hybrid")
NEEDED = ("real", "synthetic")  # the question itself
MOST_PICTURES = 10**9


@dataclass(frozen=True, kw_only=True)
class PocConfig:
    """Is synthetic data worth it here? Paint, train on real, synthetic and both kinds of pictures, measure, compare.

    The same command goes on where it stopped. poc.json holds all numbers, `commands` in it how to repeat each.
    """

    INPUTS: ClassVar = "Prompts and photos in, a recommendation out"

    prompts: FirstLook[Path]
    """File of prompts, as stablerep-gen takes it. A column label says which class each prompt is of; without one its
    text must name the classes."""

    real: FirstLook[str]
    """Real photos: a folder with CLASS/ folders, or with train/CLASS/ and test/CLASS/; a table of path, label and
    split; or fashion-mnist. Photos in unlabelled/, or without a class, are trained on and never measured on."""

    out: FirstLook[Path]
    """Folder of the proof of concept. Given again with the same settings, it goes on where it stopped."""

    measure_on: FirstLook[str | None] = None
    """Measure on this labelled set, not on photos kept aside of --real. It is what stablerep-eval takes as --data;
    --real then needs no labels."""

    BUDGET: ClassVar = "Budget: at least one of the first three"

    budget_pictures: FirstLook[int | None] = None
    """Pictures to paint. Each encoder is trained on as many pictures, real, synthetic or both, or on all there are."""

    budget_seconds: FirstLook[float | None] = None
    """Seconds for everything. As many pictures are painted as they pay for, by rates measured first."""

    budget_usd: FirstLook[float | None] = None
    """Dollars for everything, at --usd-per-hour; likewise."""

    usd_per_hour: FirstLook[float | None] = None
    """What the machine costs."""

    watts: float | None = None
    """What the machine draws. If not given, NVML's counter of the GPU; without a GPU no energy is reported."""

    dry_run: FirstLook[bool] = False
    """Measure a batch, a step and a small evaluation, write nothing, and print the bill."""

    COMPARED: ClassVar = "What is compared"

    arms: tuple[str, ...] = ARMS
    """`real` (SimCLR) and `synthetic` (StableRep), always; `hybrid`, both in every batch; `supervised`, SupCon on the
    labelled photos alone; `pretrained`, weights of timm, frozen; `untrained` and `pixels`."""

    real_share: FirstLook[tuple[float, ...]] = (0.25, 0.5, 0.75)
    """Of `hybrid`: which part of the pictures is real. The validation photos choose among several."""

    pretrained: tuple[str, ...] = ()
    """Of `pretrained`: names of timm (resnet50.a1_in1k) or files. If not given, timm's weights of --arch where they are
    on disk; nothing is fetched then."""

    equal_cost: bool = True
    """Train on real photos once more, for as long as painting and training on synthetic ones took together."""

    seeds: FirstLook[int] = 3
    """How often each encoder is trained and measured, with seeds --seed, --seed + 1, ..."""

    seed: int = 0
    """The first of them; draws the split and which pictures go where, too."""

    SPLIT: ClassVar = "Photos kept aside, where --real comes without a split"

    test_share: float = 0.3
    """Of each class, at least one photo: measured on at the end."""

    validation_share: float = 0.1
    """Of each class, at least one photo: what choices are made by. Also of the training photos of a given split."""

    max_train: int | None = None
    """Labelled photos that the probes learn from, at most."""

    PAINTING: ClassVar = "Painting"

    generate: FirstLook[Path | None] = None
    """YAML file of stablerep-gen's flags; those below win over it."""

    model: FirstLook[str | None] = None
    """As stablerep-gen's."""

    guidance_scale: float | None = None
    """As stablerep-gen's."""

    num_inference_steps: int | None = None
    """As stablerep-gen's."""

    scheduler: str | None = None
    """As stablerep-gen's."""

    adapt: FirstLook[Path | None] = None
    """First teach the generator the photos to train on, by a YAML file of stablerep-adapt's flags; it may hold {}."""

    num_images_per_prompt: int | None = None
    """Pictures of each prompt. If not given 10, or more where the budget allows more than that of each."""

    TRAINING: ClassVar = "Training"

    train: FirstLook[str] = "small-data"
    """Preset or YAML file of stablerep-train's flags; those below win over it. Data, objective, seed and out are each
    encoder's own."""

    arch: FirstLook[str | None] = None
    """As stablerep-train's."""

    image_size: FirstLook[int | None] = None
    """As stablerep-train's."""

    batch_size: int | None = None
    """As stablerep-train's."""

    steps: FirstLook[int | None] = None
    """Length of each training. If not given, that of --train's epochs over the synthetic pictures."""

    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1`."""

    def __post_init__(self) -> None:
        for name in ("arms", "real_share", "pretrained"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str | float | int) else tuple(value))
        self._check_budget()
        for arm in self.arms:
            check_choice("--arms", arm, ARMS)
        if missing := [arm for arm in NEEDED if arm not in self.arms]:
            raise UserError(f"--arms lacks {missing[0]}; the question needs {' and '.join(NEEDED)}")
        if "hybrid" in self.arms:
            self._check_real_shares()
        check_at_least(self, seeds=1, seed=0, max_train=1, num_images_per_prompt=1, image_size=8, batch_size=4, steps=1)
        for name in ("test_share", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{flag_of(name)} must be between 0 and 1, got {getattr(self, name)}")
        if self.test_share + self.validation_share > 0.8:
            raise UserError(
                f"--test-share {self.test_share} and --validation-share {self.validation_share} leave too few photos "
                "to train on; lower one"
            )

    def _check_budget(self) -> None:
        budgets = ("budget_pictures", "budget_seconds", "budget_usd")
        if all(getattr(self, name) is None for name in budgets):
            raise UserError("--budget-pictures, --budget-seconds or --budget-usd is missing; say what may be spent")
        for name in (*budgets, "usd_per_hour", "watts"):
            if getattr(self, name) is not None:
                check_above_zero(self, name)
        if self.budget_usd is not None and self.usd_per_hour is None:
            raise UserError(f"--budget-usd {self.budget_usd:g} needs --usd-per-hour, what the machine costs")
        if self.adapt and (self.budget_seconds or self.budget_usd):
            raise UserError("--adapt goes with --budget-pictures: how long it learns is not known beforehand")
        if (self.budget_pictures or 0) > MOST_PICTURES:
            raise UserError(f"--budget-pictures must be at most {MOST_PICTURES}, got {self.budget_pictures}")

    def _check_real_shares(self) -> None:
        if not self.real_share:
            raise UserError("--real-share needs a value, for instance 0.5")
        for share in self.real_share:
            if not 0 < share < 1:
                raise UserError(f"--real-share must be above 0 and below 1, got {share:g}")
            if self.real_share.count(share) > 1:
                raise UserError(f"--real-share names {share:g} twice")
        if self.measure_on and len(self.real_share) > 1:
            raise UserError(
                "--measure-on leaves no validation photos to choose the best --real-share by; give one, for instance "
                "--real-share 0.5"
            )

    @property
    def seconds_allowed(self) -> float:
        """What --budget-seconds and --budget-usd pay for."""
        by_price = math.inf
        if self.budget_usd is not None:
            assert self.usd_per_hour is not None
            by_price = self.budget_usd / self.usd_per_hour * 3600
        return min(by_price, math.inf if self.budget_seconds is None else self.budget_seconds)
