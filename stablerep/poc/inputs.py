"""What the flags of a proof of concept name, read and checked before anything is painted or trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stablerep import run_folder
from stablerep.config import UserError
from stablerep.data.labelled import open_labelled
from stablerep.models.pretrained import full_name
from stablerep.poc.config import PocConfig
from stablerep.poc.photos import TRAIN, VALIDATION, read_real
from stablerep.poc.plan import match_classes
from stablerep.poc.settings import Settings, read_settings
from stablerep.poc.split import Split, draw_split
from stablerep.prompts import Prompt, read_prompts

log = logging.getLogger("stablerep.poc")


@dataclass(frozen=True)
class Inputs:
    """What a plan is made of."""

    settings: Settings
    split: Split
    prompts: Sequence[Prompt]
    classes: Sequence[str]  # of each prompt, "" where it is of none
    class_names: Sequence[str]
    measured: tuple[int, int] | None  # training and test photos of --measure-on


def with_pretrained(config: PocConfig) -> PocConfig:
    """The config with the weights of timm that --arch has on disk, where none are named; else without that arm."""
    if "pretrained" not in config.arms or config.pretrained:
        return config
    if earlier := run_folder.read_config(PocConfig, Path(config.out), "proof of concept"):
        return replace(config, pretrained=earlier.pretrained)
    import timm
    from huggingface_hub import try_to_load_from_cache

    arch = read_settings(config).example.arch
    about = timm.models.get_pretrained_cfg(arch) if timm.is_model(arch) else None
    for file in ("model.safetensors", "pytorch_model.bin"):
        if about and about.hf_hub_id and isinstance(try_to_load_from_cache(about.hf_hub_id, file), str):
            return replace(config, pretrained=(full_name(arch),))
    log.info("no pretrained weights of %s on disk, so none are compared; --pretrained NAME fetches some", arch)
    return config


def read_inputs(config: PocConfig, workplace: Path) -> Inputs:
    settings = read_settings(config)
    prompts = read_prompts(Path(config.prompts))
    split = draw_split(read_real(config.real, workplace), config)
    if not split.of(TRAIN):
        raise UserError(f"--real {config.real} has no photo to train on; add some beside those to measure on")
    class_names, measured = split.classes, None
    if config.measure_on:
        try:
            data = open_labelled(config.measure_on, config.seed)
        except UserError as error:
            raise UserError(f"--measure-on {str(error).removeprefix('--data ')}") from error
        class_names = list(data.train.class_names)
        measured = (min(len(data.train), config.max_train or len(data.train)), len(data.test))
    elif "hybrid" in config.arms and len(config.real_share) > 1 and not split.of(VALIDATION):
        raise UserError(
            f"--real {config.real} has too few photos to keep some for validation, by which the best --real-share is "
            "chosen; give one --real-share"
        )
    classes = match_classes(prompts, class_names, config.prompts)
    return Inputs(settings, split, prompts, classes, class_names, measured)
