"""What the encoder of a run is before its first step: random, timm's pretrained one, or what --init names."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn

from stablerep import atomic
from stablerep import config as configs
from stablerep.config import UserError
from stablerep.models import IMAGENET_MEAN, IMAGENET_STD, InputTransform, full_name, load_encoder, load_weights
from stablerep.train import checkpoint
from stablerep.train.config import TrainConfig

RECORD = "initialized_from.yaml"

log = logging.getLogger("stablerep.train")


@dataclass(frozen=True)
class Initial:
    """Whose weights a run began with, and how pictures are normalised for them."""

    initialized_from: str | None = None  # None: random weights
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def transform(self, image_size: int) -> InputTransform:
        return InputTransform(image_size, self.mean, self.std)

    def save(self, out: Path) -> None:
        """Keep it for the run when it is resumed: the weights are then in its checkpoints, and RUN may be gone."""
        if self.initialized_from:
            atomic.write(out / RECORD, yaml.safe_dump(configs.to_dict(self), sort_keys=False))

    @classmethod
    def load(cls, out: Path) -> Initial:
        if not (out / RECORD).exists():
            return cls()
        fields = yaml.safe_load((out / RECORD).read_text())
        return cls(fields["initialized_from"], tuple(fields["mean"]), tuple(fields["std"]))


def refuse_tag(config: TrainConfig) -> None:
    """Raise a UserError if --arch names pretrained weights and they are not asked for."""
    name, _, tag = config.arch.partition(".")
    if tag and config.init:
        raise UserError(f"--arch {config.arch} names weights, and --init {config.init} others; give --arch {name}")
    if tag and not config.pretrained:
        raise UserError(
            f"--arch {config.arch} names pretrained weights; add --pretrained to begin with them, "
            f"or give --arch {name} to begin with random ones"
        )


def load_initial(config: TrainConfig, model: nn.Module) -> Initial:
    """Put the weights that the config asks for into the encoder; the head too if --init is a run with one like it.

    Raises:
        UserError: the weights cannot be had, or are of another model than --arch.
    """
    if not (config.init or config.pretrained):
        return Initial()
    flag = "--init" if config.init else "--pretrained:"
    source = str(config.init or config.arch)
    try:
        encoder, transform = load_encoder(source, arch=config.arch)
        load_weights(model.get_submodule("encoder"), encoder.state_dict(), source)
    except UserError as error:
        raise UserError(f"{flag} {error}") from error
    if config.init:
        _load_head(Path(config.init), model.get_submodule("head"))
    is_path = Path(source).expanduser().exists()
    name = source if is_path or ":" in source else full_name(source)
    log.info("the encoder begins with the weights of %s", name)
    return Initial(name, transform.mean, transform.std)


def _load_head(run: Path, head: nn.Module) -> None:
    """Take the head of a run, where the newest of its checkpoints holds one of the same shape."""
    found = checkpoint.read_newest(run / checkpoint.CHECKPOINTS, torch.device("cpu"))
    if found is None:
        return
    path, state = found
    theirs = {name.removeprefix("head."): value for name, value in state["model"].items() if name.startswith("head.")}
    if {name: value.shape for name, value in theirs.items()} == {
        name: value.shape for name, value in head.state_dict().items()
    }:
        head.load_state_dict(theirs)
        log.info("the head goes on from %s", path)
    else:
        log.info("the head starts new: that of %s has other widths", path)
