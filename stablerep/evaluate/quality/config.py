"""What a comparison of synthetic pictures with real photos is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stablerep.config import FirstLook, UserError, check_at_least, check_choice
from stablerep.data.bit_range import parse_bit_range
from stablerep.evaluate.config import UNTRAINED

INCEPTION = "inception:"  # --features value: torch-fidelity's network, with the file of its weights
SPLITS = ("train", "test")
FEATURES = (
    "give a training run, a timm name (vit_small_patch14_dinov2.lvd142m), inception:WEIGHTS, or pixels (small pictures)"
)


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Compare synthetic pictures with real photos: how near, how varied, how true to the prompt, what was memorised.

    All numbers are of distances between features: they are worth what the encoder of --features sees. Compare only
    numbers of the same features and of about as many pictures.
    """

    synthetic: FirstLook[str]
    """A folder of stablerep-gen (its pictures belong together by prompt, and have classes where the prompts file has a
    class or label column), or any folder, table or tar of pictures."""

    real: FirstLook[str]
    """Real photos, as --data of stablerep-eval takes them: `fashion-mnist`, a folder with or without train/ and CLASS/
    folders, a table, shards. Labels are not needed. Only its training photos are looked at."""

    features: FirstLook[str]
    """The encoder whose features are compared: a training run or exported folder, a file of weights, a timm name
    (resnet50.a1_in1k) or hf-hub:OWNER/NAME; `inception:WEIGHTS.pth`, torch-fidelity's Inception (2,048 features), for
    numbers like those in papers; `untrained:ARCH`; `pixels`, for small pictures of one kind only."""

    out: FirstLook[Path]
    """Folder for quality.json, pictures of what it names, and the features, which a later run goes on with."""

    arch: str | None = None
    """The timm model that a file of weights is of, where the file does not say."""

    image_size: int | None = None
    """Side of the square that the encoder sees. Default: a trained encoder's own; else 32 for pixels, 224."""

    max_real: FirstLook[int | None] = None
    """Use at most this many real photos, as even over the classes as they allow, drawn by the seed."""

    max_synthetic: int | None = None
    """Use at most this many synthetic pictures, as even over the prompts as they allow, drawn by the seed."""

    real_split: str = "train"
    """`train` or `test`: which real photos the synthetic ones are compared with. Memorised pictures are searched among
    the training photos in any case."""

    neighbours: int = 5
    """The k of precision, recall, density and coverage: a photo's neighbourhood reaches to its k-th neighbour."""

    kid_subsets: int = 100
    """Draws that the kernel distance (KID) is the mean of."""

    kid_subset_size: int = 1000
    """Pictures of each side in a draw; at most half of the smaller side."""

    memorised_quantile: float = 0.999
    """A picture counts as memorised if it is nearer to a training photo than this share of the training photos are to
    their nearest other one."""

    thumbnails: int = 32
    """How many of the nearest pairs, and of the pictures that give the set away, are kept to be looked at."""

    bit_range: str = "auto"
    """Of photos with more than 8 bits a channel, what becomes black and what white: LOW:HIGH, `full` or `auto`."""

    strict: bool = False
    """Stop at a picture that cannot be decoded, in place of leaving it out and counting it."""

    batch_size: int = 256
    """Pictures a step of the encoder; changes the time, not the result."""

    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1`."""

    seed: int = 0
    """Draws photos, subsets and folds, and the weights of an untrained encoder."""

    def __post_init__(self) -> None:
        if not self.features:
            raise UserError(f"--features is empty; {FEATURES}")
        for prefix, lacks in (
            (UNTRAINED, "its encoder; write untrained:resnet10t"),
            (INCEPTION, "the file of its weights"),
        ):
            if self.features in (prefix, prefix[:-1]):
                raise UserError(f"--features {self.features} lacks {lacks}")
        for flag, value in (("--synthetic", self.synthetic), ("--real", self.real)):
            if not value:
                raise UserError(f"{flag} is empty; give pictures to compare")
        check_choice("--real-split", self.real_split, SPLITS)
        check_at_least(
            self, image_size=1, max_real=2, max_synthetic=2, neighbours=1, kid_subsets=1, kid_subset_size=2,
            thumbnails=0, batch_size=1, seed=0,
        )  # fmt: skip
        if not 0 < self.memorised_quantile < 1:
            raise UserError(f"--memorised-quantile must lie between 0 and 1, got {self.memorised_quantile}")
        parse_bit_range(self.bit_range)
