"""A proof of concept from its flags to poc.json: splits, paints, trains, measures, compares; resumable anywhere."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console

from stablerep import atomic, distributed, run_folder
from stablerep import config as configs
from stablerep.config import UserError
from stablerep.evaluate.run import evaluate
from stablerep.generate.run import generate
from stablerep.generate.summary import GenerateSummary
from stablerep.poc.adaptation import adapted, adapting
from stablerep.poc.config import PocConfig
from stablerep.poc.dry_run import Bill, Rates, affordable, kept_rates, make_bill, measure_rates
from stablerep.poc.inputs import Inputs, read_inputs, with_pretrained
from stablerep.poc.ledger import Ledger
from stablerep.poc.photos import TEST, TRAIN, VALIDATION
from stablerep.poc.plan import EQUAL_COST, Arm, Plan, make_plan
from stablerep.poc.settings import ModelRef, command
from stablerep.poc.split import keep_split, write_table
from stablerep.poc.summary import Measured, make_summary
from stablerep.train.loop import train

POC, SPLIT, LEDGER = "poc.json", "split.csv", "ledger.json"
FREE = ("out", "device", "dry_run", "watts", "usd_per_hour")  # what it runs on and costs, not what it computes
FOREIGN = ("dataset.json", "checkpoints", "exported", "results.json")  # of the other commands

log = logging.getLogger("stablerep.poc")


def run_poc(config: PocConfig) -> dict[str, Any]:
    """Carry out a proof of concept, or go on with it; what poc.json holds is returned.

    Raises:
        UserError: what the config asks for cannot be done, or the folder is another run's.
    """
    out = Path(config.out).resolve()
    check_folder(config, out)
    config = with_pretrained(config)
    inputs = read_inputs(config, out)
    budget = config.budget_pictures or 0
    if config.budget_seconds is not None or config.budget_usd is not None:
        rates = kept_rates(out, config, inputs.settings, inputs.split, inputs.prompts)
        budget = affordable(config, inputs.settings, inputs.split, inputs.prompts, inputs.classes, rates)
        bill = make_bill(_plan(config, inputs, budget), rates, config)
        log.info("the budget pays for %d pictures: about %.0f s in all, by the rates in %s", budget, bill.seconds, out)
    plan = _plan(config, inputs, budget)
    out.mkdir(parents=True, exist_ok=True)
    keep_split(out / SPLIT, inputs.split)
    if not (out / run_folder.CONFIG).exists():
        configs.save(config, out / run_folder.CONFIG)
    plan.write(out)
    work = Work(config, inputs, plan, out)
    measured = work.carry_out()
    poc = make_summary(config, inputs, plan, work.ledger.entries, measured, work.risks, work.commands, work.device)
    atomic.write(out / POC, json.dumps(poc, indent=1) + "\n")
    return poc


def estimate(config: PocConfig) -> Bill:
    """What --dry-run prints; nothing is written to --out.

    Raises:
        UserError: what run_poc() would refuse.
    """
    out = Path(config.out).resolve()
    check_folder(config, out)
    config = with_pretrained(config)
    with tempfile.TemporaryDirectory() as folder:
        inputs = read_inputs(config, out if (out / run_folder.CONFIG).exists() else Path(folder))
        rates: Rates = measure_rates(config, inputs.settings, inputs.split, inputs.prompts)
        budget = config.budget_pictures or 0
        if config.budget_seconds is not None or config.budget_usd is not None:
            budget = affordable(config, inputs.settings, inputs.split, inputs.prompts, inputs.classes, rates)
        return make_bill(_plan(config, inputs, budget), rates, config)


def check_folder(config: PocConfig, out: Path) -> None:
    """Raise a UserError unless --out is free, or the folder of this proof of concept."""
    earlier = run_folder.read_config(PocConfig, out, "proof of concept")
    if earlier is not None and not config.pretrained:  # what was found on disk then
        config = replace(config, pretrained=earlier.pretrained)
    run_folder.check_same_run(out, earlier, config, FREE)
    if earlier is None and (foreign := [name for name in FOREIGN if (out / name).exists()]):
        run_folder.refuse_foreign_files(out, foreign)


def _plan(config: PocConfig, inputs: Inputs, budget: int) -> Plan:
    return make_plan(config, inputs.settings, inputs.split, inputs.prompts, inputs.classes, budget)


class Work:
    """The steps of a plan in their order; each is a call that goes on where it was stopped."""

    def __init__(self, config: PocConfig, inputs: Inputs, plan: Plan, out: Path) -> None:
        self.config, self.inputs, self.plan, self.out = config, inputs, plan, out
        self.adapting = None
        if config.adapt:
            self.adapting = adapting(config, inputs.settings, out / "tables" / "adapt.csv", out / "adapted")
        with distributed.start(config.device) as device:
            self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            self.ledger = Ledger(out / LEDGER, config.watts, device)
        self.commands: list[str] = []
        self.risks = {"duplicates": 0, "photo_copies": inputs.split.duplicates, "damaged": 0, "rejected": 0}
        self._console = Console(stderr=True, highlight=False)
        self._steps = 0

    def carry_out(self) -> list[Measured]:
        trained = [arm for arm in self.plan.arms if arm.is_trained]
        looks = len(self.plan.arms) + len(self._chosen_among)
        self._most = len(self.plan.prompts) + self.config.seeds * (len(trained) + looks) + bool(self.adapting)
        model = None
        if (asked := self.adapting) is not None:
            photos = self.inputs.split.of(TRAIN)
            write_table(Path(asked.photos), photos)
            self.commands.append(command(asked))
            model = self._step("adapt", "adapt", "adapt the generator", len(photos), lambda: adapted(asked))
        for part in range(len(self.plan.prompts)):
            self._paint(part, model)
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        for arm in sorted(trained, key=lambda arm: arm.comparison == EQUAL_COST):  # it needs the seconds of the others
            for seed in seeds:
                self._train(arm, seed)
        return [self._measure(arm, seed) for arm in self.plan.arms for seed in seeds]

    def _step(self, name: str, kind: str, title: str, images: int, work: Callable[[], Any]) -> Any:
        self._steps += 1
        self._console.print(f"[bold]{self._steps}/{self._most} {title}[/bold]")
        return self.ledger.run(name, kind, images, work)

    def _paint(self, part: int, model: ModelRef | None) -> None:
        plan = self.plan
        settings = self.inputs.settings.painting(
            plan.prompts_file(self.out, part), plan.painted(self.out, part),
            seed=self.config.seed + part,  # ids begin at 0 in every part; their noise should differ
            images_per_prompt=plan.images_per_prompt, model=model,
        )  # fmt: skip
        self.commands.append(command(settings))
        images = plan.images_per_prompt * len(plan.prompts[part])
        title = f"paint {images:,} pictures, part {part + 1} of {len(plan.prompts)}"
        summary = self._step(f"paint {plan.part_name(part)}", "paint", title, images, lambda: generate(settings))
        assert isinstance(summary, GenerateSummary)
        if summary.problem:
            raise UserError(f"painting failed: {summary.problem}")
        self.risks["duplicates"] += summary.screened.get("duplicate", 0)
        self.risks["rejected"] += max(0, images - summary.images)

    def _train(self, arm: Arm, seed: int) -> None:
        assert arm.objective is not None
        steps = self._steps_of_equal_cost() if arm.comparison == EQUAL_COST else self.plan.steps
        data = self.plan.data_of(arm, self.out)
        settings = self.inputs.settings.training(arm.objective, data, self._run(arm, seed), seed, steps)
        self.commands.append(command(settings))
        title = f"train {arm.name}, seed {seed}: {arm.images:,} pictures, {steps:,} steps"
        self._step(f"train {arm.name} seed-{seed}", "train", title, arm.images, lambda: train(settings))
        damaged = self._run(arm, seed) / "damaged.txt"
        if seed == self.config.seed and damaged.exists():
            self.risks["damaged"] = max(self.risks["damaged"], len(damaged.read_text().splitlines()))

    def _steps_of_equal_cost(self) -> int:
        """Steps on real photos that take as long as painting and training on synthetic pictures have taken.

        A ledger's seconds stay once a step is done, so a run that goes on finds the same number.
        """
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        real, synthetic = (
            fmean(self.ledger.seconds(f"train {name} seed-{seed}") for seed in seeds) for name in ("real", "synthetic")
        )
        return max(self.plan.steps, round(self.plan.steps * (self._paint_seconds() + synthetic) / max(real, 1e-9)))

    def _paint_seconds(self, parts: int | None = None) -> float:
        """Of the first parts, with all of what adapting took; None: of all parts."""
        names = [f"paint {self.plan.part_name(part)}" for part in range(len(self.plan.prompts))[:parts]]
        adapted = self.ledger.entries["adapt"].seconds if self.adapting else 0.0
        return adapted + sum(map(self.ledger.seconds, names))

    def _measure(self, arm: Arm, seed: int) -> Measured:
        place = self.out / "measured" / arm.name / f"seed-{seed}"
        data = self.config.measure_on or str(self.out / SPLIT)
        results = self._evaluate(arm, seed, data, place, "test")
        validation = None
        if arm in self._chosen_among:
            table = self.out / "tables" / "validation.csv"
            split = self.inputs.split
            asked = [replace(photo, split=TEST) for photo in split.of(VALIDATION)]
            write_table(table, [*split.of(TRAIN, labelled=True), *asked])
            beside = place.with_name(f"{place.name}-validation")
            validation = self._evaluate(arm, seed, str(table), beside, "validation")
        self.risks["damaged"] = max(self.risks["damaged"], len(results["damaged_photos"]))
        took = self.ledger.seconds(f"measure {arm.name} seed-{seed} test")
        return Measured(
            arm, seed, place, self._run(arm, seed) if arm.is_trained else None, results,
            validation["linear_top1"] if validation else None,
            paint_seconds=self._paint_seconds(arm.parts) if arm.parts else 0.0,
            train_seconds=self.ledger.seconds(f"train {arm.name} seed-{seed}") if arm.is_trained else 0.0,
            evaluate_seconds=took,
        )  # fmt: skip

    def _evaluate(self, arm: Arm, seed: int, data: str, place: Path, photos: str) -> dict[str, Any]:
        checkpoint = arm.checkpoint or str(self._run(arm, seed))
        # A trained encoder brings its own size.
        size = self.inputs.settings.example.image_size if arm.kind == "untrained" else None
        settings = self.inputs.settings.evaluating(checkpoint, data, place, seed, size)
        self.commands.append(command(settings))
        title = f"measure {arm.name}, seed {seed}, on the {photos} photos"
        return self._step(f"measure {arm.name} seed-{seed} {photos}", "evaluate", title, 0, lambda: evaluate(settings))

    @property
    def _chosen_among(self) -> list[Arm]:
        """The hybrids, where validation photos must choose one of several."""
        hybrids = [arm for arm in self.plan.arms if arm.kind == "hybrid"]
        return hybrids if len(hybrids) > 1 else []

    def _run(self, arm: Arm, seed: int) -> Path:
        return self.out / "runs" / arm.name / f"seed-{seed}"
