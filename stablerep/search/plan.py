"""A search before it begins: flags and files are read and checked, nothing is written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablerep import atomic, run_folder
from stablerep import config as configs
from stablerep.config import UserError, check_folder, fingerprint
from stablerep.generate.config import GenerateConfig
from stablerep.generate.identity import hash_prompts
from stablerep.prompts import read_prompts
from stablerep.prompts.grammar import read_grammar
from stablerep.prompts.writer import make_prompts, read_classes
from stablerep.search.budget import Budget, budget_of
from stablerep.search.config import BUDGETS, SearchConfig
from stablerep.search.proxy import Proxy, class_key
from stablerep.search.space import MIXED, Space, space_of
from stablerep.search.split import RealPhotos, check_photos, most_of_a_class, read_photos, write_photos
from stablerep.search.trial import Bench
from stablerep.train.config import OBJECTIVES, TrainConfig

INPUTS = "inputs.json"
# What may differ when a search goes on: where and how long. Of the YAML files the fields are compared.
FREE = ("out", "device", "dry_run", "usd_per_hour", "trials", "prune", "generate", "train", *BUDGETS)
# The demo's training in examples/fashion, cut to 120 smaller steps.
SHORT_TRAINING: dict[str, Any] = {
    "arch": "resnet10t", "image_size": 32, "batch_size": 128, "steps": 120, "views_per_prompt": 4, "base_lr": 2e-3,
    "warmup": 0.1, "head_hidden": 512, "head_out": 128, "min_scale": 0.5, "blur": 0.0, "keep_checkpoints": 1,
    "checkpoint_every": 60,
}  # fmt: skip
LOOKS_FROM = 5  # training photos of a class; below, there is no few-step score
# Where trials lie is not known yet.
ELSEWHERE = {"out": "trial"}


@dataclass(frozen=True)
class Plan:
    """What a search is, and may spend."""

    config: SearchConfig
    space: Space
    budget: Budget
    real: RealPhotos
    num_prompts: int
    generate: GenerateConfig
    train: TrainConfig
    prompts_hash: str

    def bench(self, out: Path, proxy: Proxy) -> Bench:
        """What the trials below `out` share."""
        asked = self.config.prune and self.config.score == "train" and not self.space.axes
        can_look = asked and most_of_a_class(self.real.train) >= LOOKS_FROM
        return Bench(self.config, self.generate, self.train, proxy, out, can_look)

    def inputs(self) -> dict[str, Any]:
        """What trials follow from, besides the flags."""
        own = ("prompts", "out", "data", "seed", "device", "online")
        of_files = {
            f"{name}: {field}": value
            for name, config in (("generate", self.generate), ("train", self.train))
            for field, value in configs.to_dict(config).items()
            if field not in own
        }
        return {"prompts": self.prompts_hash, "photos of --real": self.real.fingerprint(), **of_files}


def plan_of(config: SearchConfig) -> Plan:
    """Read and check all that a config names.

    Raises:
        UserError: a mistake in it, or an --out that holds another search.
    """
    _check_folder(config)
    space = space_of(config)
    generate, train = _generate_flags(config), _train_flags(config)
    _check_views(space, train)
    texts, labels, digest = _prompts(config, space, generate)
    budget = budget_of(config, texts * space.most_images_per_prompt)
    real = read_photos(config)
    _refuse_other_classes(config, labels, real.classes)
    return Plan(config, space, budget, real, texts, generate, train, digest)


def begin(plan: Plan, out: Path) -> None:
    """Make `out` the folder of this search, or see that it is.

    Raises:
        UserError: another one's, named by the first difference, or photos that are others now.
    """
    _check_folder(plan.config)  # another process may have begun another search here since
    if (out / INPUTS).exists():
        run_folder.refuse_other_run(out, json.loads((out / INPUTS).read_text()), plan.inputs())
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_photos(out, plan.real)
        configs.save(plan.config, out / run_folder.CONFIG)
        atomic.write(out / INPUTS, json.dumps(plan.inputs(), indent=1) + "\n")
    check_photos(out)


def _check_folder(config: SearchConfig) -> None:
    out = Path(config.out)
    check_folder("--out", out)
    earlier = run_folder.read_config(SearchConfig, out, "search")
    run_folder.check_same_run(out, earlier, config, FREE)


def _generate_flags(config: SearchConfig) -> GenerateConfig:
    """What stablerep-gen is told beside a trial's settings."""
    own = {"prompts": "-", "device": config.device} | ELSEWHERE | ({"model": config.model} if config.model else {})
    if config.generate is None:
        return configs.from_fields(GenerateConfig, own)
    return _with_file(GenerateConfig, str(config.generate), own, "--generate")


def _train_flags(config: SearchConfig) -> TrainConfig:
    own = {"data": "painted", "device": config.device} | ELSEWHERE
    if config.train is None:
        return configs.from_fields(TrainConfig, SHORT_TRAINING | own)
    return _with_file(TrainConfig, config.train, own, "--train")


def _with_file(cls: type[configs.Config], path: str, own: dict[str, str], flag: str) -> configs.Config:
    argv = [word for name, value in own.items() for word in (configs.flag_of(name), value)]
    try:
        read = configs.parse(cls, ["--config", path, *argv], f"stablerep-search {flag} {path}")
    except UserError as error:
        raise UserError(f"{flag} {path}: {str(error).removeprefix('--config ')}") from error
    for name in ("dry_run", "ray", "gpus", "online"):
        if getattr(read, name, None):
            raise UserError(f"{flag} {path} sets {name}; leave it out in a search")
    return read


def _check_views(space: Space, train: TrainConfig) -> None:
    fewest = space.fewest_images_per_prompt
    if OBJECTIVES[train.objective].group_by == "prompt" and fewest < train.views:
        raise UserError(
            f"--num-images-per-prompt from {fewest} is too few for the {train.views} views a prompt of training; "
            f"begin at {train.views}, or lower views_per_prompt in --train"
        )


def _prompts(config: SearchConfig, space: Space, base: GenerateConfig) -> tuple[int, set[str], str]:
    """How many prompts a trial has, the labels among them, and a digest of what they are."""
    if config.prompts is not None:
        prompts = read_prompts(Path(config.prompts), base.encoding, base.csv_plain)
        return len(prompts), {prompt.label for prompt in prompts if prompt.label}, hash_prompts(prompts)
    assert config.classes is not None
    classes = read_classes(Path(config.classes))
    made: list[Sequence[str]] = []
    mixtures = space.axes.get("template", space.choices["template"])
    for mixture in mixtures:
        grammars = [read_grammar(name) for name in mixture.split(MIXED)]
        few = list(itertools.islice(make_prompts(classes, grammars, config.seed), config.num_prompts))
        if len(few) < config.num_prompts:
            raise UserError(
                f"--num-prompts {config.num_prompts} is more than the {len(few)} different prompts of --template "
                f"{mixture}; lower it or add classes"
            )
        made.append([prompt.prompt for prompt in few])
    return config.num_prompts, set(classes), fingerprint(made)


def _refuse_other_classes(config: SearchConfig, labels: set[str], classes: Sequence[str]) -> None:
    known = {class_key(name) for name in classes}
    if labels and not {class_key(label) for label in labels} & known:
        flag, path = ("--prompts", config.prompts) if config.prompts else ("--classes", config.classes)
        mend = "name them alike, or leave the column of labels out" if config.prompts else "name them alike"
        raise UserError(
            f"{flag} {path} matches no class of --real {config.real}: it has {_few(sorted(labels))}, "
            f"the photos have {_few(classes)}; {mend}"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
