"""The two parts of a pipeline that an engine compiles: what goes in, what comes out, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from stablerep import ops
from stablerep.generate.pipeline import Pipeline

NAMES = ("unet", "vae_decoder")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OUTPUT = "output"


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


@dataclass(frozen=True)
class Part:
    """A module with an input a name of its forward; every input but `timestep` has a row a picture."""

    name: str
    module: nn.Module
    config: dict[str, Any]  # diffusers' own
    row_shapes: dict[str, tuple[int, ...]]  # of one row; () is the timestep, one number for all rows
    dtype: torch.dtype
    device: torch.device
    tokens: Tensor | None = None  # [2, T, D] real text embeddings: a UNet's numbers are wild on random ones

    def example(self, rows: int, seed: int = 0) -> dict[str, Tensor]:
        """Inputs as a run would give them."""
        values: dict[str, Tensor] = {}
        for number, (name, shape) in enumerate(self.row_shapes.items()):
            if name == "timestep":
                values[name] = torch.tensor([501.0], device=self.device)
            elif name == "text":
                assert self.tokens is not None
                values[name] = self.tokens.repeat(rows // 2 + 1, 1, 1)[:rows].contiguous()
            else:
                ids = torch.arange(rows)
                noise = ops.philox_normal(seed, ids, torch.full_like(ids, number), shape, device=self.device)
                values[name] = noise.to(self.dtype)
        return values

    @torch.inference_mode()
    def reference(self, inputs: dict[str, Tensor]) -> Tensor:
        """What torch makes of these inputs."""
        return self.module(**inputs)

    def weights_digest(self) -> str:
        """Sixteen hex digits over the weights in the dtype they have here, wherever they came from."""
        digest = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def graph_digest(self) -> str:
        """Sixteen hex digits over what decides the graph besides our exporter's version and the libraries'."""
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}
        text = json.dumps([self.name, config, self.row_shapes], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def parts_of(pipeline: Pipeline) -> dict[str, Part]:
    """The UNet and the VAE decoder of a pipeline, by name."""
    unet, latent = pipeline.unet, pipeline.latent_shape
    tokens = pipeline.encode(["", "a photo"]).text.to(unet.dtype)
    shapes = {"latents": latent, "timestep": (), "text": tuple(tokens.shape[1:])}
    if unet.config.addition_embed_type == "text_time":  # SDXL
        ids = 6
        width = unet.config.projection_class_embeddings_input_dim - ids * unet.config.addition_time_embed_dim
        shapes |= {"text_embeds": (width,), "time_ids": (ids,)}
    where = {"dtype": unet.dtype, "device": unet.device}
    vae = pipeline.vae
    return {
        "unet": Part("unet", _Unet(unet).eval(), dict(unet.config), shapes, tokens=tokens, **where),
        "vae_decoder": Part("vae_decoder", _Decoder(vae).eval(), dict(vae.config), {"latents": latent}, **where),
    }


class _Unet(nn.Module):
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
    ) -> Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids} if text_embeds is not None else None
        return self.unet(latents, timestep, text, added_cond_kwargs=added, return_dict=False)[0]


class _Decoder(nn.Module):
    """Only what decoding needs: the encoder half of the VAE is neither exported nor part of the identity."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.scaling_factor: float = vae.config.scaling_factor
        self.decoder = vae.decoder
        self.post_quant_conv = vae.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        latents = latents / self.scaling_factor
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))
