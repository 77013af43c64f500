"""The commands of `stablerep-engine`. Apart from engines.commands, so that --help loads neither torch nor diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stablerep.config import check_at_least, check_choice

COMPILED = ("onnx", "trt")
DTYPES = ("auto", "fp32", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Compile the UNet and the VAE decoder of a model; what is built already is kept."""

    model: str = "default"
    """Diffusers pipeline: Stable Diffusion 1.x/2.x, SDXL, their Turbo and LCM models; a folder, a hub name, one
    safetensors file of all its weights, or the embedded default."""

    model_config: str | None = None
    """As given to stablerep-gen, for a --model that is one file."""

    engine: str = "onnx"
    """onnx or trt."""

    dtype: str = "auto"
    """fp32, fp16 or bf16. As stablerep-gen would run it if not given: fp16 for trt and for CUDA, else fp32."""

    batch_size: int = 64
    """As given to stablerep-gen. A TensorRT engine takes no more, and is fastest at just this."""

    guided: bool = True
    """Whether --guidance-scale will be other than 1: then the UNet runs on two rows a picture."""

    engine_dir: Path | None = None
    """Folder of built engines; ~/.cache/stablerep/engines if not given."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        check_choice("--engine", self.engine, COMPILED)
        check_choice("--dtype", self.dtype, DTYPES)
        check_at_least(self, batch_size=1)


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Show what is built, and what can run here."""

    engine_dir: Path | None = None
    """Folder of built engines; ~/.cache/stablerep/engines if not given."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Compare every engine of a model with torch, part by part."""

    model: str = "default"
    """Diffusers pipeline whose engines are compared; engines of other models are left out."""

    model_config: str | None = None
    """As given to stablerep-gen, for a --model that is one file."""

    batch_size: int = 64
    """Pictures at once; an engine for fewer is compared on as many as it takes."""

    engine_dir: Path | None = None
    """Folder of built engines; ~/.cache/stablerep/engines if not given."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1)


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Remove engines that are damaged, that differ from torch, or that this installation would not take any more."""

    everything: bool = False
    """Remove all engines."""

    dry_run: bool = False
    """Only say what would go."""

    engine_dir: Path | None = None
    """Folder of built engines; ~/.cache/stablerep/engines if not given."""


COMMANDS = {"build": BuildConfig, "list": ListConfig, "verify": VerifyConfig, "prune": PruneConfig}
