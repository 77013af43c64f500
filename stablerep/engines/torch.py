"""The reference engine: the pipeline's own modules, attention through torch's fused kernel (SDPA).

And torch's out-of-memory error in place of every other library's.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from stablerep.engines import PipelineModules
from stablerep.engines.conditioning import Conditioning

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# ONNX Runtime: "Failed to allocate memory for requested buffer", "bad_alloc", BFCArena; TensorRT: OutOfMemory; torch's
# allocator on the CPU: "can't allocate memory"; oneDNN beneath it, of a convolution that fits with fewer rows: "could
# not create a primitive"; CUDA and cuBLAS beneath them all.
OUT_OF_MEMORY_TEXTS = re.compile(
    r"out of memory|out_of_memory|OutOfMemory|bad_alloc|bad allocation|BFCArena|(failed to|can't|cannot) allocate"
    r"|cudaErrorMemoryAllocation|ALLOC_FAILED|could not create a (primitive|memory)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TorchEngine:
    pipeline: PipelineModules
    name: str = "torch"
    compiled: bool = False  # by torch.compile, for the rows it meets first, and then for any number of them
    why_not_capturable: ClassVar[str | None] = None

    def unet(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        with torch_out_of_memory():
            return self._unet(latents, timestep, **conditioning.inputs)

    def decode(self, latents: Tensor) -> Tensor:
        with torch_out_of_memory():
            return self._decoder(latents.to(self.pipeline.vae.dtype))

    def with_own_context(self) -> TorchEngine:
        return self

    @functools.cached_property
    def _unet(self) -> Callable[..., Tensor]:
        module = Unet(self.pipeline.unet).eval()
        return torch.compile(module) if self.compiled else module

    @functools.cached_property
    def _decoder(self) -> Callable[..., Tensor]:
        module = Decoder(self.pipeline.vae).eval()
        return torch.compile(module) if self.compiled else module


class Unet(nn.Module):
    """Inputs are latents, timestep and those of Conditioning."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        added = None
        if text_embeds is not None:
            # The UNet joins it with float32 embeddings of time_ids. torch promotes by itself; in ONNX nothing does.
            added = {"text_embeds": text_embeds.float(), "time_ids": time_ids}
        return self.unet(
            latents, timestep, text, timestep_cond=timestep_cond, added_cond_kwargs=added, return_dict=False
        )[0]


class Decoder(nn.Module):
    """Only what decoding needs: the encoder half of the VAE is neither exported nor part of the identity."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        config = vae.config
        self.scaling_factor: float = config.scaling_factor
        self.shift_factor: float = config.shift_factor or 0.0
        mean, std = config.latents_mean, config.latents_std
        self.normalised = mean is not None and std is not None
        if self.normalised:
            of_channel = [torch.tensor(each, dtype=vae.dtype, device=vae.device) for each in (mean, std)]
            self.register_buffer("mean", of_channel[0].reshape(1, -1, 1, 1), persistent=False)
            self.register_buffer("std", of_channel[1].reshape(1, -1, 1, 1), persistent=False)
        self.decoder = vae.decoder
        self.post_quant_conv = vae.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        if self.normalised:
            latents = latents * self.std / self.scaling_factor + self.mean
        else:
            latents = latents / self.scaling_factor
        if self.shift_factor:
            latents = latents + self.shift_factor
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


@contextlib.contextmanager
def torch_out_of_memory() -> Iterator[None]:
    """Within, whatever says that memory ran out becomes torch.OutOfMemoryError, which halves the batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a library's own class, or a bare RuntimeError: only the text tells
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY_TEXTS.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise torch.OutOfMemoryError(reason) from error.with_traceback(None)  # whose frames hold the batch
