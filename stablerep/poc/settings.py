"""The flags of each step: those of --generate and --train, with the proof of concept's own over them."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from stablerep import config as configs
from stablerep.adapt.config import AdaptConfig
from stablerep.config import UserError, check_choice, flag_of
from stablerep.evaluate.config import EvaluateConfig
from stablerep.generate.config import GenerateConfig
from stablerep.poc.config import PocConfig
from stablerep.train.config import OBJECTIVES, TrainConfig

OF_GENERATE = ("model", "guidance_scale", "num_inference_steps", "scheduler", "num_images_per_prompt")
OF_TRAIN = ("arch", "image_size", "batch_size", "steps")
# What each step is given by the proof of concept alone.
OWN_OF_GENERATE = ("prompts", "out", "seed", "dry_run", "usd_per_hour", "encoding", "csv_plain")
OWN_OF_TRAIN = ("data", "out", "online", "seed", "dry_run", "usd_per_hour")
RECIPE_IMAGES = 10  # of a prompt; GenerateConfig's own
SYNTHETIC, REAL, SUPERVISED = "stablerep", "simclr", "supcon"
PROGRAMS: dict[type, str] = {
    GenerateConfig: "stablerep-gen", AdaptConfig: "stablerep-adapt", TrainConfig: "stablerep-train",
    EvaluateConfig: "stablerep-eval",
}  # fmt: skip


@dataclass(frozen=True)
class ModelRef:
    """A generator to paint with: what adapting one hands back."""

    model: str
    lora: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Fields of the three configs that all steps share."""

    generate: dict[str, Any]
    train: dict[str, Any]
    evaluate: dict[str, Any]

    EXAMPLE: ClassVar = Path("-")  # stands for files that a step is given

    @property
    def views(self) -> int:
        """Pictures of a prompt in a batch."""
        return self.training(SYNTHETIC, (str(self.EXAMPLE),), self.EXAMPLE, 0, 1).views

    @property
    def example(self) -> TrainConfig:
        return self.training(SYNTHETIC, (str(self.EXAMPLE),), self.EXAMPLE, 0, self.train.get("steps") or 0)

    @property
    def images_per_prompt(self) -> int | None:
        return self.generate.get("num_images_per_prompt")

    def painting(
        self, prompts: Path, out: Path, seed: int, images_per_prompt: int, model: ModelRef | None = None
    ) -> GenerateConfig:
        fields = {**self.generate, "num_images_per_prompt": images_per_prompt}
        if model:
            fields |= {"model": model.model, "lora": (*self.generate.get("lora", ()), *model.lora)}
        return configs.from_fields(GenerateConfig, {**fields, "prompts": prompts, "out": out, "seed": seed})

    def training(self, objective: str, data: tuple[str, ...], out: Path, seed: int, steps: int) -> TrainConfig:
        fields = dict(self.train)
        if objective != SYNTHETIC:  # its fields say how prompts' pictures are compared
            synclr = {field.name for field in dataclasses.fields(configs.inner_configs(TrainConfig)["synclr"])}
            fields = {name: value for name, value in fields.items() if name not in {"views_per_prompt", *synclr}}
        given = {"objective": objective, "data": data, "out": out, "seed": seed, "steps": steps}
        return configs.from_fields(TrainConfig, {**fields, **given})

    def evaluating(self, checkpoint: str, data: str, out: Path, seed: int, image_size: int | None) -> EvaluateConfig:
        given = {"checkpoint": checkpoint, "data": data, "out": out, "seed": seed, "image_size": image_size}
        return configs.from_fields(EvaluateConfig, {**self.evaluate, **given})


def read_settings(config: PocConfig) -> Settings:
    """Read --generate and --train and check what they say together.

    Raises:
        UserError: a file that cannot be read, an unknown field, or one that each step is given anyway.
    """
    generate = read_flags("--generate", GenerateConfig, config.generate, OWN_OF_GENERATE) if config.generate else {}
    train = read_flags("--train", TrainConfig, _train_file(config.train), OWN_OF_TRAIN)
    if (objective := train.pop("objective", SYNTHETIC)) != SYNTHETIC:
        raise UserError(
            f"--train {config.train} sets objective {objective}; each encoder has its own: leave it out, or train it "
            "with stablerep-train"
        )
    generate |= {name: getattr(config, name) for name in OF_GENERATE if getattr(config, name) is not None}
    train |= {name: getattr(config, name) for name in OF_TRAIN if getattr(config, name) is not None}
    own = {"device": config.device}
    settings = Settings({**generate, **own}, {**train, **own}, {"max_train": config.max_train, **own})
    painting = settings.painting(Path("-"), Path("-"), 0, settings.images_per_prompt or RECIPE_IMAGES)
    if not isinstance(painting.guidance_scale, float):
        raise UserError(f"--generate {config.generate} takes one guidance_scale, got {painting.guidance_scale}")
    if (settings.images_per_prompt or RECIPE_IMAGES) < settings.views:
        raise UserError(
            f"--num-images-per-prompt {settings.images_per_prompt or RECIPE_IMAGES} is below the training's "
            f"views_per_prompt of {settings.views}; raise it, or lower that in --train"
        )
    for objective in (REAL, SUPERVISED):  # batches that do not divide, before anything is painted
        assert objective in OBJECTIVES
        settings.training(objective, ("-",), Path("-"), 0, 1)
    return settings


def _train_file(text: str) -> Path:
    path, known = Path(text).expanduser(), configs.presets(TrainConfig)
    if not path.exists() and path.name == text and not path.suffix:
        check_choice("--train", text, known)
        return known[text]
    return path


def read_flags(flag: str, cls: type, path: Path, own: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a YAML file of a command's flags."""
    try:
        values = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{flag} {path} must hold one mapping of field: value")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    known = [field.name for _, field in configs.flat_fields(cls)]
    for name in values:
        check_choice(f"{flag} {path}: field", name, known)
        if name in own:
            raise UserError(f"{flag} {path} sets {name}, which the proof of concept says itself; leave it out")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def command(config: Any) -> str:
    """The command that does what a config says: its flags that differ from their defaults."""
    words = [PROGRAMS[type(config)]]
    values = configs.to_dict(config)
    for _, field in configs.flat_fields(type(config)):
        value, flag = values[field.name], flag_of(field.name)
        default = None if field.default is dataclasses.MISSING else field.default
        default = str(default) if isinstance(default, Path) else default
        if value == (list(default) if isinstance(default, tuple) else default):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag_of(f"no_{field.name}"))
            continue
        words += [flag, *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return shlex.join(words)
