"""The two parts of a pipeline that an engine compiles: what goes in, what comes out, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stablerep import ops
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.modules import Decoder, Unet
from stablerep.generate.pipeline import DTYPES, Pipeline

NAMES = ("unet", "vae_decoder")
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
    told: Conditioning | None = None  # two rows as a run has them: a UNet's numbers are wild on random ones

    def example(self, rows: int, seed: int = 0) -> dict[str, Tensor]:
        """Inputs as a run would give them."""
        values: dict[str, Tensor] = {}
        for number, (name, shape) in enumerate(self.row_shapes.items()):
            if name == "timestep":
                values[name] = torch.tensor([501.0], device=self.device)
            elif self.told is not None and name in self.told.inputs:
                values[name] = torch.cat([self.told.inputs[name]] * (rows // 2 + 1))[:rows]
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
    unet, vae = pipeline.unet, pipeline.vae
    latents: dict[str, tuple[int, ...]] = {"latents": pipeline.latent_shape}
    told = pipeline.with_guidance(pipeline.encode(["", "a photo"]), [2.0, 7.5])
    shapes = latents | {"timestep": ()} | {name: tuple(value.shape[1:]) for name, value in told.inputs.items()}
    return {
        "unet": Part("unet", Unet(unet).eval(), dict(unet.config), shapes, unet.dtype, unet.device, told),
        "vae_decoder": Part("vae_decoder", Decoder(vae).eval(), dict(vae.config), latents, vae.dtype, vae.device),
    }
