"""What an adaptation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stablerep.config import FirstLook, UserError, check_above_zero, check_at_least, check_choice, flag_of, parse_share

PRECISIONS = ("auto", "bf16", "fp32")
LORA_RATE, FULL_RATE = 1e-4, 1e-5


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Teach a diffusion model one's own photos.

    The result is a LoRA, OUT/pytorch_lora_weights.safetensors, which stablerep-gen --lora OUT:1 and diffusers take, or
    with --full a pipeline, OUT/pipeline, which stablerep-gen --model takes.
    """

    FOLDERS: ClassVar = "Photos in, an adapted model out"

    photos: FirstLook[str]
    """Folder of photos (CLASS/ folders are labels; a.txt beside a.jpg is its caption), or a table (.csv, .tsv, .jsonl,
    .json, .parquet) with a column path, and caption, label and split where it has them. Of a set with a split only the
    training photos are used."""

    template: FirstLook[str | None] = None
    """Caption of each photo, with {label} where its label goes: "a photo of a {label}", which is taken for photos with
    a label and no caption if not given."""

    out: FirstLook[Path]
    """Folder of the run. Given again with the same settings, the run goes on where it stopped."""

    MODEL: ClassVar = "Model, and what of it is trained"

    model: FirstLook[str] = "default"
    """Diffusers pipeline: Stable Diffusion 1.x/2.x, SDXL; a folder, a hub name, one safetensors file of all its
    weights, or the embedded default."""

    model_config: str | None = None
    """Of a --model that is one file: the folder or hub name of a pipeline of its kind."""

    rank: FirstLook[int] = 16
    """Of the LoRA's matrices: more holds more, and learns single photos by heart sooner."""

    alpha: float | None = None
    """The LoRA counts alpha / rank; as --rank if not given."""

    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Which layers of the UNet get a LoRA, by the end of their names."""

    text_encoder: bool = False
    """Train the text encoder too: its attention's LoRA, or with --full all of it. Worth it where captions have words
    that it never read."""

    full: FirstLook[bool] = False
    """Train all weights of the UNet instead of a LoRA: for small models, as the embedded default on a laptop."""

    image_size: int | None = None
    """With --full: pixels a side that the model learns to paint, if others than before."""

    vae_steps: int = 0
    """With --full: first so many steps of --batch-size photos for the VAE, where it cannot draw such photos. How well
    it does is said at the start."""

    PHOTOS: ClassVar = "Photos"

    crops: int = 1
    """Squares cut out of each photo: its middle, then others along its longer side."""

    flip: bool = False
    """Each square also mirrored."""

    upscale: bool = False
    """Enlarge photos that are smaller than what the model paints; without it they are refused."""

    held_out: float | str = 0.1
    """Share of the photos, at least one, that is not trained on: the denoising loss on them says when to stop, and
    which weights were best."""

    TRAINING: ClassVar = "Training"

    steps: FirstLook[int] = 1000
    """At most: --patience may end the run before."""

    batch_size: FirstLook[int] = 4
    """Photos in a step."""

    learning_rate: FirstLook[float | None] = None
    """AdamW's, after a warmup, falling as a half cosine; 1e-4 for a LoRA and 1e-5 with --full if not given. Models as
    small as the embedded default take 1e-3."""

    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""

    weight_decay: float = 0.01
    """AdamW's."""

    min_snr_gamma: float = 5.0
    """Weigh noise levels by min(SNR, this) (Hang et al. 2023); 0: all alike."""

    caption_dropout: float = 0.1
    """Share of photos shown without their caption, which guidance needs."""

    prior_weight: float = 0.0
    """Above 0: pictures that the model itself painted beforehand are in every step, and count so much (DreamBooth).
    Keeps it from forgetting."""

    prior_prompt: str | None = None
    """What those pictures show: "a photo of a part"."""

    prior_images: int = 100
    """How many of them."""

    validate_every: int = 100
    """Steps between looks at the photos held out."""

    patience: int = 5
    """Stop when so many looks in a row saw no lower loss; the best weights are kept. 0: never."""

    SAMPLES: ClassVar = "Pictures painted on the way"

    sample_every: int = 500
    """Steps between pictures in OUT/samples; 0: none."""

    sample_prompts: tuple[str, ...] = ()
    """What they show; eight of the photos' captions if not given."""

    guidance_scale: float = 2.0
    """Classifier-free guidance of these and of --prior-weight's pictures."""

    num_inference_steps: int = 20
    """Denoising steps of them, by dpmsolver++."""

    RUNNING: ClassVar = "Where it runs"

    device: FirstLook[str] = "auto"
    """auto, cpu, cuda or cuda:N."""

    precision: str = "auto"
    """bf16, fp32, or auto: bf16 on CUDA, fp32 elsewhere."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: a third slower, a fraction of the
    memory."""

    seed: FirstLook[int] = 0
    """Draws weights, batches, noise and the photos held out."""

    checkpoint_every: int = 200
    """Steps between checkpoints."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    dry_run: bool = False
    """Take a few steps, write nothing, and print what the run would take."""

    def __post_init__(self) -> None:
        for name in ("targets", "sample_prompts"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "photos", str(self.photos))
        check_choice("--precision", self.precision, PRECISIONS)
        check_at_least(
            self, rank=1, crops=1, steps=1, batch_size=1, weight_decay=0, min_snr_gamma=0, prior_weight=0,
            prior_images=1, validate_every=1, patience=0, sample_every=0, num_inference_steps=1, seed=0,
            checkpoint_every=1, log_every=1, vae_steps=0, image_size=8, guidance_scale=0,
        )  # fmt: skip
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", FULL_RATE if self.full else LORA_RATE)
        check_above_zero(self, "learning_rate", *(["alpha"] if self.alpha is not None else []))
        for name in ("warmup", "caption_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{flag_of(name)} must be from 0 to below 1, got {getattr(self, name)}")
        object.__setattr__(self, "held_out", share := parse_share("--held-out", self.held_out))
        if not 0 < share <= 0.5:
            raise UserError(f"--held-out must be above 0 and at most 0.5, got {share:g}")
        if not self.targets:
            raise UserError("--targets needs the end of a layer's name, for instance to_q")
        if not self.full:
            for name in ("image_size", "vae_steps"):
                if getattr(self, name):
                    raise UserError(
                        f"{flag_of(name)} {getattr(self, name)} goes with --full: a LoRA leaves the rest of the model "
                        "as it is"
                    )
        if bool(self.prior_weight) != bool(self.prior_prompt):
            missing = "--prior-prompt" if self.prior_weight else "--prior-weight"
            raise UserError(f"--prior-weight and --prior-prompt go together; {missing} is missing")
        if self.seed >= 2**63:
            raise UserError(f"--seed must be at most 2^63 - 1, got {self.seed}")

    @property
    def rate(self) -> float:
        assert self.learning_rate is not None
        return self.learning_rate

    @property
    def held_out_share(self) -> float:
        assert isinstance(self.held_out, float)
        return self.held_out
