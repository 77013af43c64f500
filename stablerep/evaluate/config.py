"""What an evaluation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stablerep.config import UserError, check_at_least
from stablerep.data.bit_range import parse_bit_range

BatchNorm = Literal["yes", "no", "choose"]

PIXELS, UNTRAINED = "pixels", "untrained:"  # --checkpoint values that are no file


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure frozen features on a labelled set of real photos: linear probe, nearest neighbours, few-shot."""

    checkpoint: str
    """A training run or exported folder; a file of weights (.safetensors, .pth); a pretrained model by its timm name
    (resnet50.a1_in1k) or hf-hub:OWNER/NAME; `untrained:ARCH`, random weights; `pixels`, the raw ones."""

    arch: str | None = None
    """The timm model that a file of weights is of, where the file does not say."""

    data: str
    """`fashion-mnist`; a folder with train/CLASS/ and test/CLASS/ photos, or with CLASS/ folders, of which a fifth is
    then drawn to test; MVTec AD's layout; a table of path, label and split; shards with labels."""

    out: Path
    """Folder for results.json and config.yaml. Results already there for the same question are returned at once."""

    image_size: int | None = None
    """Side of the square that the encoder sees. Default: a trained encoder's own; else 32 for pixels and for
    fashion-mnist, 224 for the rest."""

    max_train: int | None = None
    """Use at most this many training photos, as even over the classes as they allow, drawn by the seed."""

    bit_range: str = "auto"
    """Of photos with more than 8 bits a channel, what becomes black and what white: LOW:HIGH, `full` (all values of 16
    bits), or `auto`: as the encoder was trained, else the 0.1st and 99.9th percentile of the training photos."""

    strict: bool = False
    """Stop at a photo that cannot be decoded, in place of leaving it out and counting it."""

    epochs: int = 90
    """Passes of the linear probe over the training photos."""

    batch_norm: BatchNorm = "yes"
    """Whether the linear probe sees features brought to mean 0 and deviation 1, as by a BatchNorm without weights;
    `choose` tries both on the folds."""

    batch_size: int = 256
    """Photos a step of the frozen encoder; changes the time, not the result."""

    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1`."""

    seed: int = 0
    """Draws the held-out and the few-shot photos, and the weights of an untrained encoder."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("--checkpoint is empty; give a training run, an exported folder, pixels or untrained:ARCH")
        if self.checkpoint in ("untrained", UNTRAINED):
            raise UserError("--checkpoint untrained lacks its encoder; write for example untrained:resnet10t")
        if self.arch and (self.checkpoint == PIXELS or self.checkpoint.startswith(UNTRAINED)):
            raise UserError(f"--arch {self.arch} says what a file of weights is of; --checkpoint is {self.checkpoint}")
        check_at_least(self, image_size=1, max_train=1, epochs=1, batch_size=1)
        parse_bit_range(self.bit_range)
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, got {self.seed}")
