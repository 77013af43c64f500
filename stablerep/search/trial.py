"""One trial: paint, train for a short time, measure on the validation photos; or paint and compare.

    OUT/trials/0007/    prompts.csv (of templates), painted/, trained/, measured/, seconds.json, and last result.json

Each step goes on where it was stopped, as the command that does it does.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stablerep import atomic
from stablerep.config import UserError
from stablerep.evaluate.config import EvaluateConfig
from stablerep.evaluate.run import evaluate
from stablerep.evaluate.watch import open_watch
from stablerep.generate.config import GenerateConfig
from stablerep.generate.run import generate
from stablerep.generate.summary import GenerateSummary
from stablerep.models import InputTransform
from stablerep.prompts.config import PromptsConfig
from stablerep.prompts.writer import write_prompts
from stablerep.search.config import SearchConfig
from stablerep.search.proxy import Proxy
from stablerep.search.space import MIXED, Settings
from stablerep.search.split import SPLIT, TRAIN
from stablerep.train.checkpoint import CHECKPOINTS
from stablerep.train.config import TrainConfig
from stablerep.train.loop import train
from stablerep.train.watch import BEST

RESULT, SECONDS, PROMPTS = "result.json", "seconds.json", "prompts.csv"
PAINTED, TRAINED, MEASURED = "painted", "trained", "measured"
# The settings that are stablerep-gen's own flags.
PAINTING = ("guidance_scale", "num_inference_steps", "scheduler", "negative_prompt", "num_images_per_prompt")
TICK_SECONDS = 5.0  # what a kill may leave uncounted
FIRST_LOOK = 3  # the few-step score is taken after this part of the steps: a third

Look = Callable[[float], bool]  # the few-step score in percent; True: not worth going on


class Pruned(Exception):
    """The few-step score was among the worst."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial, and what it cost."""

    state: str  # complete, pruned, failed
    score: float | None  # what is searched for, higher is better; None unless complete
    measured: float | None  # percent of the validation photos, where an encoder was trained
    ci95: float | None  # of measured: half a width, over photos
    proxy: float | None
    few_step: float | None  # kNN top-1 after a third of the training
    images: int
    seconds: Mapping[str, float]  # by step: paint, proxy, train, evaluate
    reason: str = ""  # of a failure

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Bench:
    """What all trials of a search share."""

    config: SearchConfig
    generate: GenerateConfig  # but for what a trial's settings say
    train: TrainConfig
    proxy: Proxy
    out: Path  # where the tables of photos lie
    can_look: bool  # whether some class has photos enough for a few-step score

    def is_trained(self, number: int) -> bool:
        return self.config.score == "train" or number < self.config.calibration_trials


def folder_of(out: Path, number: int) -> Path:
    return out / "trials" / f"{number:04}"


def read_outcome(folder: Path) -> Outcome | None:
    """Of a trial that has ended, though the study may not have heard of it."""
    path = folder / RESULT
    return Outcome(**json.loads(path.read_text())) if path.exists() else None


def run_trial(bench: Bench, number: int, settings: Settings, folder: Path, look: Look | None = None) -> Outcome:
    """Do a trial in `folder`, or what is left of it.

    Args:
        look: is told the few-step score, and says whether to stop; None: none is taken.

    Raises:
        UserError: what one of its commands refuses. The trial is then still open.
    """
    if (earlier := read_outcome(folder)) is not None:
        return earlier
    folder.mkdir(parents=True, exist_ok=True)
    meter, state = Meter(folder / SECONDS), "complete"
    measured = ci95 = few_step = None

    with meter.measure("paint"):
        summary = generate(generate_config(bench, settings, folder))
    assert isinstance(summary, GenerateSummary)
    if summary.problem:
        raise UserError(summary.problem)
    with meter.measure("proxy"):
        proxy = bench.proxy(folder / PAINTED, bench.out / SPLIT)

    if bench.is_trained(number):

        def first_look(score: float) -> bool:
            nonlocal few_step
            few_step = score
            return look is not None and look(score)

        try:
            with meter.measure("train"):
                trained = _train(bench, settings, folder, first_look if look and bench.can_look else None)
            with meter.measure("evaluate"):
                results = evaluate(evaluate_config(bench, trained, folder))
            measured = results[bench.config.measure]
            ci95 = _binomial_ci95(measured, results["test_photos"])
        except Pruned:
            state = "pruned"
        for leftover in (
            CHECKPOINTS,
            BEST,
        ):  # a trial that has ended goes on no more; what is measured lies in exported/
            shutil.rmtree(folder / TRAINED / leftover, ignore_errors=True)
    score = (measured if bench.config.score == "train" else proxy) if state == "complete" else None
    outcome = Outcome(state, score, measured, ci95, proxy, few_step, summary.images, meter.seconds)
    atomic.write(folder / RESULT, json.dumps(asdict(outcome), indent=1) + "\n")
    return outcome


def fail_trial(folder: Path, images: int, reason: str) -> Outcome:
    """Write that a trial has failed."""
    seconds = Meter(folder / SECONDS).seconds
    outcome = Outcome("failed", None, None, None, None, None, images, seconds, reason)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write(folder / RESULT, json.dumps(asdict(outcome), indent=1) + "\n")
    return outcome


def generate_config(bench: Bench, settings: Settings, folder: Path) -> GenerateConfig:
    """What paints a trial; writes its prompts where templates make them."""
    config, prompts = bench.config, bench.config.prompts
    if settings.template is not None:
        prompts = folder / PROMPTS
        if not prompts.exists():
            names = tuple(settings.template.split(MIXED))
            wanted: dict[str, Any] = {"template": names, "num_prompts": config.num_prompts}
            write_prompts(PromptsConfig(classes=config.classes, out=prompts, seed=config.seed, **wanted))
    assert prompts is not None
    own = {name: getattr(settings, name) for name in PAINTING}
    return replace(bench.generate, prompts=prompts, out=folder / PAINTED, seed=config.seed + settings.seed, **own)


def train_config(bench: Bench, settings: Settings, painted: Path, out: Path) -> TrainConfig:
    """What trains on a trial's pictures, and by its share on the real photos."""
    share, groups = settings.real_share, bench.train.batch_size // bench.train.views
    data: tuple[str, ...] = (str(painted),)
    if round(share * groups):  # a share of less than half a photo in a batch is none
        data = (f"{painted}:{1 - share:.4g}", f"{bench.out / TRAIN}:{share:.4g}")
    return replace(bench.train, data=data, out=out, seed=bench.config.seed + settings.seed)


def evaluate_config(bench: Bench, trained: Path, folder: Path) -> EvaluateConfig:
    config, data = bench.config, str(bench.out / SPLIT)
    return EvaluateConfig(
        checkpoint=str(trained), data=data, out=folder / MEASURED, device=config.device, seed=config.seed
    )


def _train(bench: Bench, settings: Settings, folder: Path, look: Look | None) -> Path:
    config = train_config(bench, settings, folder / PAINTED, folder / TRAINED)
    if look is None:
        train(config)
        return folder / TRAINED
    split = str(bench.out / SPLIT)
    if config.steps:
        config = replace(config, watch=split, watch_every=config.steps // FIRST_LOOK + 1)
    else:
        config = replace(config, watch=split)
    opened = open_watch(split, bench.config.seed)
    looked = False

    def open_probe(device: torch.device) -> Callable[[nn.Module, InputTransform], float]:
        probe = opened(device)

        def watched(encoder: nn.Module, transform: InputTransform) -> float:
            nonlocal looked
            score = probe(encoder, transform)
            if not looked:
                looked = True
                if look(score):
                    raise Pruned
            return score

        return watched

    train(config, open_watch=open_probe)
    return folder / TRAINED


def _binomial_ci95(percent: float, photos: int) -> float:
    share = percent / 100
    return round(196 * (share * (1 - share) / photos) ** 0.5, 4)


class Meter:
    """Seconds of each step of a trial, summed over the processes that did it, killed ones too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextlib.contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Count the time of a block; it is written every few seconds, so that a kill loses no more."""
        before, start = self.seconds.get(step, 0.0), time.perf_counter()
        ended = threading.Event()

        def note() -> None:
            self.seconds[step] = round(before + time.perf_counter() - start, 2)
            atomic.write(self._path, json.dumps(self.seconds) + "\n")

        def tick() -> None:
            while not ended.wait(TICK_SECONDS):
                note()

        ticker = threading.Thread(target=tick, daemon=True)
        ticker.start()
        try:
            yield
        finally:
            ended.set()
            ticker.join()
            note()
