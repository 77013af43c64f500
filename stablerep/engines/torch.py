"""The reference engine: the pipeline's own modules, channels last, attention through torch's fused kernel (SDPA)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stablerep.engines.memory import out_of_memory_is_torch_s
from stablerep.engines.modules import Decoder, Unet
from stablerep.generate.conditioning import Conditioning
from stablerep.generate.pipeline import Pipeline


@dataclass(frozen=True)
class TorchEngine:
    pipeline: Pipeline
    name: str = "torch"
    compiled: bool = False  # by torch.compile, for the rows it meets first, and then for any number of them
    why_not_capturable: ClassVar[str | None] = None

    def unet(self, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
        with out_of_memory_is_torch_s():
            return self._unet(latents, timestep, **told.inputs)

    def decode(self, latents: Tensor) -> Tensor:
        with out_of_memory_is_torch_s():
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
