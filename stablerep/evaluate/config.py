"""What an evaluation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stablerep.config import FirstLook, UserError, check_at_least, check_choice
from stablerep.data.bit_range import parse_bit_range

BATCH_NORMS = ("yes", "no", "choose")
PROTOCOLS = (
    "linear", "knn", "few-shot", "logistic", "retrieval", "zero-shot", "anomaly", "linear-augmented", "fine-tune",
)  # fmt: skip
PIXELS, UNTRAINED = "pixels", "untrained:"  # --checkpoint values that are no file


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure frozen features on a labelled set of real photos: linear probe, nearest neighbours, few-shot.

    `stablerep-eval --compare RUN_A RUN_B` says which of two measured encoders is better, and how sure that is.
    """

    checkpoint: FirstLook[str]
    """A training run, a file of weights, a pretrained model by name, `pixels` or `untrained:ARCH`. In full: a run of
    stablerep-train or its exported folder; weights as .safetensors or .pth; timm's name (resnet50.a1_in1k) or
    hf-hub:OWNER/NAME; random weights; the raw values."""

    arch: str | None = None
    """The timm model that a file of weights is of, where the file does not say."""

    data: FirstLook[str]
    """A folder or table of labelled photos, shards, or a set by name: `fashion-mnist`, `torchvision:cifar10`. A folder
    has train/CLASS/ and test/CLASS/, or CLASS/ folders, of which a fifth is then drawn to test, or MVTec AD's layout; a
    table has path, label and split. Of torchvision's sets cifar10, cifar100, flowers102, dtd, food101, pets, aircraft,
    cars, caltech101, sun397, mnist and fashion-mnist are known."""

    data_root: FirstLook[Path] = Path("data")
    """Where torchvision's sets lie, as torchvision keeps them."""

    download: bool = False
    """Fetch a set of torchvision that is not in --data-root."""

    out: FirstLook[Path]
    """Folder for results.json and config.yaml. Results already there for the same question are returned at once."""

    image_size: FirstLook[int | None] = None
    """Side of the square that the encoder sees. Default: a trained encoder's own; else 32 for pixels and for
    fashion-mnist, 224 for the rest."""

    max_train: FirstLook[int | None] = None
    """Use at most this many training photos, as even over the classes as they allow, drawn by the seed."""

    bit_range: str = "auto"
    """Of photos with more than 8 bits a channel, what becomes black and what white: LOW:HIGH, `full` (all values of 16
    bits), or `auto`: as the encoder was trained, else the 0.1st and 99.9th percentile of the training photos."""

    protocols: FirstLook[str] = "linear,knn,few-shot"
    """What is measured, with commas: linear, knn, few-shot, logistic, retrieval, zero-shot, anomaly, linear-augmented,
    fine-tune."""

    few_shot: FirstLook[str | None] = None
    """Also episodes of WAY classes with SHOT photos each, as 5x5."""

    templates: Path | None = None
    """Of zero-shot: a file with a prompt a line, {} in the place of the class. Default: seven plain ones."""

    allow_overlap: FirstLook[bool] = False
    """Go on where test photos are training photos too."""

    strict: bool = False
    """Stop at a photo that cannot be decoded, in place of leaving it out and counting it."""

    epochs: int = 90
    """Passes of the linear probe over the training photos."""

    batch_norm: str = "yes"
    """Whether the linear probe sees features brought to mean 0 and deviation 1, as by a BatchNorm without weights;
    `choose` tries both on the folds."""

    feature_cache: Path | None = None
    """Folder where features are kept by encoder and photos, at most 20 GB. Default: ~/.cache/stablerep/features."""

    batch_size: FirstLook[int] = 256
    """Photos a step of the frozen encoder; changes the time, not the result."""

    fine_tune_epochs: int = 20
    """Passes over the training photos while the whole encoder is trained."""

    device: FirstLook[str] = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1`."""

    seed: FirstLook[int] = 0
    """Draws the held-out and the few-shot photos, and the weights of an untrained encoder."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("--checkpoint is empty; give a training run, an exported folder, pixels or untrained:ARCH")
        if self.checkpoint in ("untrained", UNTRAINED):
            raise UserError("--checkpoint untrained lacks its encoder; write for example untrained:resnet10t")
        if self.arch and (self.checkpoint == PIXELS or self.checkpoint.startswith(UNTRAINED)):
            raise UserError(f"--arch {self.arch} says what a file of weights is of; --checkpoint is {self.checkpoint}")
        check_at_least(self, image_size=1, max_train=1, epochs=1, batch_size=1, fine_tune_epochs=1)
        check_choice("--batch-norm", self.batch_norm, BATCH_NORMS)
        for name in self.protocol_names:
            check_choice("--protocols", name, PROTOCOLS)
        if self.few_shot is not None:
            parse_few_shot(self.few_shot)
        parse_bit_range(self.bit_range)
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, got {self.seed}")

    @property
    def protocol_names(self) -> tuple[str, ...]:
        """In the order of PROTOCOLS where all are known."""
        asked = [name.strip() for name in self.protocols.split(",")]
        return tuple(dict.fromkeys(sorted(asked, key=lambda name: PROTOCOLS.index(name) if name in PROTOCOLS else -1)))


def parse_few_shot(text: str) -> tuple[int, int]:
    """WAYxSHOT: how many classes an episode has, and how many labelled photos of each."""
    way, _, shot = text.lower().partition("x")
    if not (way.isdecimal() and shot.isdecimal() and int(way) >= 2 and int(shot) >= 1):
        raise UserError(f"--few-shot must be WAYxSHOT with 2 or more classes and 1 or more photos, as 5x5, got {text}")
    return int(way), int(shot)
