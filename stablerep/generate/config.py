"""The flags of `stablerep-gen`, and what follows from them for one prompt and for one run of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stablerep.config import FirstLook, UserError, check_at_least, check_choice, parse_share
from stablerep.engines.config import DTYPES
from stablerep.prompts.encoding import is_encoding
from stablerep.storage import Folder, place

if TYPE_CHECKING:  # pyarrow, which --help does without
    from stablerep.prompts import Prompt

ENGINES = ("torch", "native", "onnx", "trt", "auto")
FUSED_SCHEDULERS = ("ddim", "dpmsolver++", "euler")  # one kernel a step; the others are diffusers' own
SCHEDULERS = (
    *FUSED_SCHEDULERS, "ddpm", "deis", "dpm2", "dpm2_ancestral", "dpmsolver_singlestep", "euler_ancestral", "heun",
    "lcm", "lms", "pndm", "sde-dpmsolver++", "tcd", "unipc",
)  # fmt: skip
FORMATS = ("jpg", "png", "webp")
JPEG_ENCODERS = ("auto", "pil", "nvimgcodec")
SCREENS = ("keep", "flag", "drop")
SWEEP_PREFIX = "guidance_"  # of the folder of each run of a sweep


def is_guided(guidance_scales: Iterable[float]) -> bool:
    """Whether any of these pictures needs the unguided half: a scale of 1 leaves the output as it is."""
    return any(scale != 1 for scale in guidance_scales)


@dataclass(frozen=True)
class PromptSettings:
    """With what one prompt is painted: its own values where it has some, else the run's."""

    seed: int
    guidance_scale: float
    negative_prompt: str


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Paint K pictures of every prompt into shards.

    stablerep-gen --verify OUT reads and decodes every picture of such a folder and names what is damaged or missing.
    stablerep-gen --repair OUT paints those shards again; what is whole stays. It goes by the flags that dataset.json
    recorded; give --prompts, --model, --device or --batch-size where they have changed since.
    """

    FOLDERS: ClassVar = "Prompts in, shards out"

    prompts: FirstLook[Path]
    """File of prompts: .txt (one a line), .csv, .tsv, .jsonl, .json or .parquet (column prompt, caption or text;
    columns guidance_scale, negative_prompt and seed, where not empty, win over the run's own; - is no negative_prompt;
    a column label, class or concept goes into the shards)."""

    out: FirstLook[str | Path]
    """Folder for the shards, or a URL: s3://bucket/run, gs://, az:// or what else fsspec opens. The same command again
    goes on where it stopped; several at once, on all machines that see the folder, share its shards."""

    encoding: str | None = None
    """Of --prompts, for instance cp932 or cp1252, as Excel saves CSV. If not given what its byte order mark says, else
    UTF-8."""

    csv_plain: bool = False
    """Take each line of a CSV of one column whole, with its commas."""

    staging: Path | None = None
    """Folder where finished shards wait for their upload to a URL; ~/.cache/stablerep/staging if not given."""

    MODEL: ClassVar = "Model"

    model: FirstLook[str] = "default"
    """Diffusers pipeline: Stable Diffusion 1.x/2.x, SDXL, their Turbo and LCM models; a folder, a hub name, one
    safetensors file of all its weights, or the embedded default."""

    model_config: str | None = None
    """Of a --model that is one file: the folder or hub name of a pipeline of its kind, of which configs and tokenizer
    are read; for SD 1.x and SDXL the hub's if not given."""

    lora: tuple[str, ...] = ()
    """PATH:WEIGHT of a LoRA, LoHa or DoRA to add to the model: a safetensors file, or a folder as diffusers writes
    it."""

    engine: str = "auto"
    """What runs the UNet and the VAE decoder: torch, native (small models on the CPU), onnx, trt, or auto: what --out
    was begun with, else the fastest of native, torch and what is built already. Naming onnx or trt builds it, once."""

    engine_dir: Path | None = None
    """Folder of built engines; ~/.cache/stablerep/engines if not given."""

    dtype: str = "auto"
    """What the model computes in: fp32, fp16 or bf16; auto is fp16 on CUDA and fp32 on the CPU."""

    compile: bool = False
    """Run --engine torch through torch.compile: a minute at the start, then fewer and larger operations."""

    SAMPLING: ClassVar = "Sampling"

    num_images_per_prompt: FirstLook[int] = 10
    """Pictures of each prompt, K. The recipe's value; 4 is nearly as good."""

    guidance_scale: FirstLook[float | tuple[float, ...]] = 2.0
    """Classifier-free guidance; 1 turns it off, as Turbo models want it (their cards write 0). The recipe's value: 7.5
    looks better and trains worse. Several: a run of each, in OUT/guidance_1, OUT/guidance_2 and so on."""

    guidance_rescale: float = 0.0
    """0 to 1: take back the contrast that strong guidance adds (Lin et al. 2023, who take 0.7)."""

    num_inference_steps: FirstLook[int] = 50
    """Denoising steps; dpmsolver++ needs about 12."""

    scheduler: FirstLook[str] = "ddim"
    """ddim, dpmsolver++ (2M) or euler, the fast ones; or ddpm, deis, dpm2, dpm2_ancestral, dpmsolver_singlestep,
    euler_ancestral, heun, lcm, lms, pndm, sde-dpmsolver++, tcd, unipc."""

    negative_prompt: FirstLook[str] = ""
    """What guidance leads away from; in a prompts table's column of this name, a cell of - means nothing."""

    FILES: ClassVar = "Picture files"

    image_size: FirstLook[int | None] = None
    """Store pictures of this many pixels a side, resized with antialiasing. As sampled if not given."""

    image_format: str = "jpg"
    """jpg (quality 95), png or webp."""

    jpeg_encoder: str = "auto"
    """pil on the host, or nvimgcodec where the pictures were painted, of which then only files come down (other bytes,
    no other pictures); auto goes on with what a folder was begun with, else takes nvimgcodec on a GPU that has it."""

    prompts_per_shard: int = 100
    """A stop loses at most the shard at work."""

    KEEPING: ClassVar = "Which pictures are kept"

    screen: str = "flag"
    """flat pictures and near-duplicates within a prompt: keep looks for none, flag names them in the shard's rows and
    keeps them (costs 0.1 % and changes no picture), drop leaves them out and paints others. A picture with NaN or
    infinite values, which would be black, is never kept."""

    screen_retries: int = 2
    """Rounds of new pictures, with indices K, K + 1, ..., for those that were not kept."""

    max_rejected: float | str = 1.0
    """The share of the pictures, 0.5 or 50%, that may be lost in the end, with no other in their place. Beyond, and
    always where no picture at all is kept, the command ends with exit code 3 and says why; the shards stay."""

    flat_below: float = 4.0
    """Flat: the grey levels (0..255) have a standard deviation below this."""

    duplicate_within: int = 2
    """Near-duplicate: the 64-bit perceptual hash differs from an earlier picture's in at most so many bits. -1: off."""

    clip_score_model: str | None = None
    """CLIP or SigLIP of transformers, a folder or a hub name: a column clip_score says how well each picture shows its
    prompt, as 100 x cosine (at least 0; NaN for empty prompts). Off if not given, and costs a pass of it."""

    clip_score_below: float | None = None
    """Not good enough: a clip_score below this, 0 to 100. CLIP gives 25 to 35 to what fits, SigLIP less; look at the
    column first. If not given, none is too low."""

    nsfw_model: str | None = None
    """Image classifier of transformers with a label like nsfw or porn, or the safety_checker folder of a Stable
    Diffusion 1.x pipeline; a folder or a hub name. A column nsfw_score holds what it says of each picture."""

    nsfw_above: float | None = None
    """Not safe for work: an nsfw_score above this, 0 to 1; with --nsfw-model 0.5 if not given. A classifier's score is
    the probability of such labels; of a safety checker's, 0.5 is its own line and 0.01 is 0.01 of cosine."""

    RUNNING: ClassVar = "Where it runs"

    batch_size: FirstLook[int] = 64
    """Pictures painted at once; halved, and said, when they do not fit into the device's memory."""

    seed: FirstLook[int] = 0
    """Noise is a function of (seed, prompt id, picture index) alone."""

    device: FirstLook[str] = "auto"
    """auto, cpu, cuda or cuda:N."""

    gpus: str | None = None
    """Paint on several GPUs: all, or how many. Without --ray those of this machine."""

    ray: str | None = None
    """Paint on a Ray cluster: the HOST:PORT of its head, auto for the one this machine belongs to, or local to start
    one here for this command. A worker a GPU; without GPUs a worker for every OMP_NUM_THREADS processors."""

    dry_run: FirstLook[bool] = False
    """Paint one batch, write nothing, and print how many pictures, bytes and hours the run would take."""

    usd_per_hour: float | None = None
    """What the machine costs; --dry-run then prints what the run would cost."""

    def __post_init__(self) -> None:
        if self.encoding and not is_encoding(self.encoding):
            raise UserError(f"--encoding {self.encoding} is unknown; for instance cp932, gb18030, cp1252 or utf-16")
        check_choice("--engine", self.engine, ENGINES)
        if self.compile and self.engine != "torch":
            raise UserError(f"--compile goes with --engine torch, not {self.engine}")
        check_choice("--dtype", self.dtype, DTYPES)
        check_choice("--scheduler", self.scheduler, SCHEDULERS)
        check_choice("--image-format", self.image_format, FORMATS)
        check_choice("--jpeg-encoder", self.jpeg_encoder, JPEG_ENCODERS)
        check_choice("--screen", self.screen, SCREENS)
        object.__setattr__(self, "out", out if isinstance(out := place(self.out), Path) else str(out))
        check_at_least(
            self, num_images_per_prompt=1, num_inference_steps=1, prompts_per_shard=1, batch_size=1, image_size=1
        )
        if self.num_images_per_prompt > 10_000:
            raise UserError(f"--num-images-per-prompt must be at most 10000, got {self.num_images_per_prompt}")
        self._check_guidance()
        self._check_workers()
        object.__setattr__(self, "lora", (self.lora,) if isinstance(self.lora, str) else tuple(self.lora))
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"--guidance-rescale must be between 0 and 1, got {self.guidance_rescale}")
        if self.usd_per_hour is not None and not (self.dry_run and 0 <= self.usd_per_hour < float("inf")):
            raise UserError(f"--usd-per-hour {self.usd_per_hour} must be a price, and goes with --dry-run")
        if not 0 <= self.screen_retries <= 100:
            raise UserError(f"--screen-retries must be between 0 and 100, got {self.screen_retries}")
        object.__setattr__(self, "max_rejected", parse_share("--max-rejected", self.max_rejected))
        if not 0 <= self.flat_below <= 128:
            raise UserError(f"--flat-below must be between 0 and 128 grey levels, got {self.flat_below}")
        if not -1 <= self.duplicate_within <= 64:
            raise UserError(f"--duplicate-within must be between -1 and 64 bits, got {self.duplicate_within}")
        self._check_scores()
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must be between 0 and 2^63 - 1, got {self.seed}")

    def _check_guidance(self) -> None:
        scales = (self.guidance_scale,) if isinstance(self.guidance_scale, int | float) else tuple(self.guidance_scale)
        if not scales:
            raise UserError("--guidance-scale needs a value, for instance 2")
        for scale in scales:
            if not 0 <= scale <= 100:
                raise UserError(f"--guidance-scale must be between 0 and 100, got {scale}")
            if scales.count(scale) > 1:
                raise UserError(f"--guidance-scale names {scale:g} twice; each run of a sweep needs its own value")
        given = tuple(float(scale) + 0.0 for scale in scales)  # 2, 2.0 and [2] are one run; so are 0 and -0
        object.__setattr__(self, "guidance_scale", given if len(given) > 1 else given[0])

    def _check_workers(self) -> None:
        if self.gpus is not None:
            object.__setattr__(self, "gpus", str(self.gpus))
            if self.gpus != "all" and not (self.gpus.isdecimal() and int(self.gpus) > 0):
                raise UserError(f"--gpus must be all or a number of at least 1, got {self.gpus!r}")
            if self.device == "cpu":
                raise UserError(f"--gpus {self.gpus} and --device cpu exclude each other; --ray local takes the CPU")
        if (self.gpus or self.ray) and self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {self.device}: Ray says which GPU a worker has; use --gpus, or auto or cpu")

    @property
    def folder(self) -> Folder:
        """What out names."""
        return place(self.out)

    def _check_scores(self) -> None:
        for name, model, value, most in (
            ("clip-score-below", "clip-score-model", self.clip_score_below, 100),
            ("nsfw-above", "nsfw-model", self.nsfw_above, 1),
        ):
            if value is None:
                continue
            if not 0 <= value <= most:
                raise UserError(f"--{name} must be between 0 and {most}, got {value}")
            if not getattr(self, model.replace("-", "_")):
                raise UserError(f"--{name} {value:g} needs --{model}, a folder or a hub name")
            if self.screen == "keep":
                raise UserError(f"--{name} {value:g} says nothing with --screen keep; use flag or drop")
        if self.nsfw_model and self.nsfw_above is None and self.screen != "keep":
            object.__setattr__(self, "nsfw_above", 0.5)

    def picture_fields(self) -> dict[str, Any]:
        """The fields that a picture's pixels depend on, besides the prompt and the weights."""
        names = ("engine", "guidance_scale", "num_inference_steps", "scheduler", "negative_prompt")
        more = ("image_size", "image_format", "seed", "num_images_per_prompt", "prompts_per_shard")
        screening = ("screen", "screen_retries", "flat_below", "duplicate_within")
        # What came later counts only where it is used: folders of earlier versions go on.
        later = [name for name in ("guidance_rescale", "compile") if getattr(self, name)]
        later += ["dtype"] if self.dtype != "auto" else []
        later += ["jpeg_encoder"] if self.jpeg_encoder == "nvimgcodec" else []
        return {name: getattr(self, name) for name in (*names, *more, *screening, *later)}

    def settings_of(self, prompt: Prompt) -> PromptSettings:
        """For a config of one run, whose guidance_scale is a number."""
        assert isinstance(self.guidance_scale, float)
        return PromptSettings(
            seed=self.seed if prompt.seed is None else prompt.seed,
            guidance_scale=self.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale,
            negative_prompt=self.negative_prompt if prompt.negative_prompt is None else prompt.negative_prompt,
        )

    def is_guided(self, prompts: Iterable[Prompt]) -> bool:
        """Whether the run of these prompts has any guided picture."""
        return is_guided(self.settings_of(prompt).guidance_scale for prompt in prompts)

    def runs(self) -> list[GenerateConfig]:
        """A config for each guidance scale, with a folder of its own where there are several."""
        if isinstance(self.guidance_scale, float):
            return [self]
        return [
            dataclasses.replace(self, guidance_scale=scale, out=str(self.folder / sweep_folder_name(scale)))
            for scale in self.guidance_scale
        ]


def sweep_folder_name(guidance_scale: float) -> str:
    return SWEEP_PREFIX + repr(guidance_scale).removesuffix(".0")
