"""What a training run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from stablerep.config import (
    FirstLook,
    UserError,
    check_above_zero,
    check_at_least,
    check_choice,
    flag_of,
    parse_share,
)
from stablerep.data.augment import AugmentConfig
from stablerep.data.bit_range import parse_bit_range
from stablerep.train.objective_config import OBJECTIVES, SynclrConfig, TextConfig

PRECISIONS = ("auto", "bf16", "fp32")
PARALLEL = ("ddp", "fsdp")
COMPILE = ("auto", "on", "off")
TRACKERS = ("wandb", "mlflow")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an encoder so that pictures of one prompt (or views of one picture) come to lie together."""

    PRESETS = Path(__file__).parent / "presets"  # what --config takes by name

    DATA: ClassVar = "What to train on"

    data: FirstLook[tuple[str, ...]] = ()
    """Shards of stablerep-gen (a folder or a URL) or of WebDataset, a folder of pictures, or a table of paths and
    captions, as PATH or PATH:WEIGHT. Given more than once, every batch mixes them by weight (1 where none is given)."""

    bit_range: str = "auto"
    """Of pictures with more than 8 bits a channel, what becomes black and what white: LOW:HIGH, `full` (all values of
    16 bits), or `auto` (the 0.1st and 99.9th percentile of each --data, measured once and kept with the run)."""

    max_damaged: str = "25%"
    """Stop when more than this share of the pictures cannot be decoded. Those below it are named and another picture
    of the same prompt takes the place of each."""

    cache_dir: Path | None = None
    """Where shards of a URL are kept while they are read; ~/.cache/stablerep/shards if not given."""

    cache_gb: float = 100.0
    """How much of them is kept."""

    online: FirstLook[str | None] = None
    """Paint while training: PATH or PATH:WEIGHT of a YAML file of stablerep-gen's flags.
    Instead of --data or mixed with it; no picture is written."""

    pool_prompts: int = 0
    """--online: how many prompts' pictures are kept on the device, over all ranks; 0: four batches, at most all."""

    pool_uses: int = 16
    """--online: how often a prompt is shown, m of its K pictures each time, before another one takes its place. Prompts
    that come round again have new pictures."""

    RUN: ClassVar = "Run"

    out: FirstLook[Path]
    """Folder of the run. Given again with the same settings, the run goes on where it stopped."""

    epochs: FirstLook[float] = 35.0
    """How often each prompt is seen (`simclr`: each picture)."""

    steps: FirstLook[int] = 0
    """Length of the run in steps, in place of --epochs; 0: as --epochs says."""

    batch_size: FirstLook[int] = 768
    """Pictures in a step, over all ranks."""

    device: FirstLook[str] = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1`. Under torchrun each rank takes its own GPU."""

    precision: str = "auto"
    """`bf16` (autocast), `fp32`, or `auto`: bf16 on CUDA, fp32 elsewhere."""

    seed: FirstLook[int] = 0
    """Draws weights, batches, augmentation."""

    checkpoint_every: int = 200
    """Steps between checkpoints."""

    keep_checkpoints: int = 2
    """How many of the newest are kept."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl; the device is waited for only there."""

    watch: str | None = None
    """A labelled set, as stablerep-eval takes it for --data. Every --watch-every steps the encoder is measured by
    nearest neighbours among its training photos; the best one is kept in exported_best/. Test photos are not used."""

    watch_every: int = 1000
    """Steps between two such measurements."""

    track: tuple[str, ...] = ()
    """Send the metrics to `wandb` or `mlflow` too. Their own variables say where: WANDB_MODE=offline,
    MLFLOW_TRACKING_URI."""

    dry_run: bool = False
    """Take a few steps, write nothing, and print how many steps, hours and bytes the run would take."""

    usd_per_hour: float | None = None
    """What a device costs; --dry-run then prints what the run would cost."""

    MEMORY: ClassVar = "Memory and speed: the gradient stays the same"

    micro_batch_size: int = 0
    """Pictures that a rank encodes at once; 0: all, or if memory runs out half of them, and so on. The loss and its
    gradient stay those of the whole batch; it costs a forward pass more. Not with encoders that have BatchNorm."""

    activation_checkpointing: bool = False
    """Compute the encoder's activations again in the backward pass instead of keeping them (timm's
    set_grad_checkpointing): a forward pass more, a fraction of the memory."""

    parallel: str = "ddp"
    """On several ranks: `ddp` (each holds all weights) or `fsdp` (FSDP2: each holds a share of weights, gradients and
    moments). A run may go on with the other, and with another number of ranks."""

    compile: str = "auto"
    """`on`: torch.compile for encoder and head, `off`, or `auto`: on CUDA. The first step takes a minute longer; what
    is exported stays the same."""

    cuda_graph: bool = False
    """Launch a whole step, from the batch to the updated weights, as one CUDA graph: for models and batches so small
    that the host is slower than the GPU. On one GPU; not with captions, --ibot-weight or --micro-batch-size."""

    ENCODER: ClassVar = "Encoder"

    arch: FirstLook[str] = "vit_base_patch16_224"
    """Any timm model. With --pretrained also one with the tag of its weights, as resnet50.a1_in1k."""

    pretrained: FirstLook[bool] = False
    """Begin with timm's pretrained weights instead of random ones."""

    init: FirstLook[str | None] = None
    """Begin with the weights of another run, of a file, or of a name of timm or the hub. What stablerep-eval takes as
    --checkpoint, of the model of --arch; of a run also the head, where its widths are the same."""

    image_size: FirstLook[int] = 224
    """Side of the crops in pixels."""

    LOSS: ClassVar = "Objective and head"

    objective: FirstLook[str] = "stablerep"
    """What belongs together: `stablerep`, `simclr`, `supcon`, `clip`, `siglip` or `stablerep+`. `stablerep`: several
    pictures of one prompt (of a folder: several views of one photo). `simclr`: two views of one picture. `supcon`:
    views of the pictures of one class (CLASS/ folders, or labels). `clip` and `siglip`: a picture and its caption.
    `stablerep+`: stablerep and clip in one."""

    views_per_prompt: FirstLook[int | None] = None
    """Pictures of a prompt in a batch, drawn anew each time (m of K), 6 if not given; `supcon`: views of a picture, 2
    if not given, at least 1. `simclr` always takes 2 views of a picture, `clip` and `siglip` one."""

    temperature: float = 0.1
    """Of the contrastive loss."""

    head_hidden: int = 4096
    """Width of the projection head's two hidden layers."""

    head_out: int = 256
    """Width of what the loss compares."""

    TEXT: ClassVar = "Text tower"

    text: TextConfig = field(default_factory=TextConfig)
    """Its fields are flags like these."""

    SYNCLR: ClassVar = "What SynCLR and DINOv2 add"

    synclr: SynclrConfig = field(default_factory=SynclrConfig)
    """Its fields are flags like these."""

    OPTIMISER: ClassVar = "Optimiser"

    base_lr: FirstLook[float] = 2e-4
    """The peak learning rate is this times batch_size / 256 / 2, as in the paper."""

    weight_decay: float = 0.1
    """AdamW's, on matrices and convolutions only."""

    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""

    beta2: float = 0.98
    """AdamW's decay of the mean squared gradient."""

    warmup: float = 0.02
    """Share of the steps in which the learning rate rises; then it falls as a half cosine."""

    AUGMENTATION: ClassVar = "Augmentation"

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Its fields are flags like these."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", (self.data,) if isinstance(self.data, str) else tuple(self.data))
        object.__setattr__(self, "track", (self.track,) if isinstance(self.track, str) else tuple(self.track))
        if not self.data and not self.online:
            raise UserError("--data is missing; give shards of stablerep-gen or a folder of pictures, or --online")
        check_choice("--objective", self.objective, OBJECTIVES)
        asked = OBJECTIVES[self.objective]
        if self.views_per_prompt is None:  # the number is kept with the run
            object.__setattr__(self, "views_per_prompt", asked.usual_views)
        if self.online and (asked.group_by != "prompt" or asked.reads_text):
            raise UserError(f"--online goes with --objective stablerep, not {self.objective}; paint shards for that")
        if (self.synclr.is_used or self.synclr.koleo_weight) and self.objective != "stablerep":
            raise UserError(
                f"--ema-teacher, --local-crops and --koleo-weight go with --objective stablerep, not {self.objective}"
            )
        if self.online and (self.synclr.ibot_weight or self.synclr.local_crops):
            raise UserError("--ibot-weight and --local-crops do not go with --online; paint shards for that")
        check_choice("--precision", self.precision, PRECISIONS)
        check_choice("--parallel", self.parallel, PARALLEL)
        check_choice("--compile", self.compile, COMPILE)
        if self.cuda_graph and (self.micro_batch_size or asked.reads_text or self.synclr.ibot_weight):
            other = f"--objective {self.objective}" if asked.reads_text else "--ibot-weight"
            other = f"--micro-batch-size {self.micro_batch_size}" if self.micro_batch_size else other
            raise UserError(f"--cuda-graph does not go with {other}, whose steps differ in shape; leave one out")
        for name in self.track:
            check_choice("--track", name, TRACKERS)
        if self.usd_per_hour is not None and not (self.dry_run and 0 <= self.usd_per_hour < float("inf")):
            raise UserError(f"--usd-per-hour {self.usd_per_hour} must be a price, and goes with --dry-run")
        if self.pretrained and self.init:
            raise UserError(f"--pretrained and --init {self.init} both say what to begin with; give one of them")
        check_at_least(
            self, image_size=8, views_per_prompt=asked.fewest_views, batch_size=4, steps=0, weight_decay=0,
            head_hidden=1, head_out=1, seed=0, checkpoint_every=1, keep_checkpoints=1, log_every=1, pool_prompts=0,
            pool_uses=1, micro_batch_size=0, watch_every=1,
        )  # fmt: skip
        check_above_zero(self, "epochs", "base_lr", "temperature", "cache_gb")
        parse_bit_range(self.bit_range)
        parse_share("--max-damaged", self.max_damaged)
        for name in ("warmup", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{flag_of(name)} must be from 0 to below 1, got {getattr(self, name)}")
        if self.batch_size % self.views:
            below = max(1, self.batch_size // self.views) * self.views
            given = OBJECTIVES[self.objective].views
            why = f"the {given} views of {self.objective}" if given else f"--views-per-prompt {self.views}"
            raise UserError(
                f"--batch-size {self.batch_size} is no multiple of {why}; use {below} or {below + self.views}"
            )

    @property
    def views(self) -> int:
        asked = OBJECTIVES[self.objective]
        return asked.views or self.views_per_prompt or asked.usual_views

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.batch_size / 256 / 2
