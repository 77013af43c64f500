"""The two modules of a pipeline that an engine compiles, UNet and VAE decoder: inputs, identity, and the comparison.

A built engine runs only after `verify` has found it as close to torch as its precision allows.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stablerep import ops
from stablerep.engines import PipelineModules
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.store import Verification
from stablerep.engines.torch import Decoder, Unet

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OUTPUT = "output"
# dtype -> least cosine of a row, largest error as a share of the largest number in the reference. Two orders of the
# same sums differ by 2e-6 in fp32 (embedded default); half precisions by what their mantissas lose over the depth.
BOUNDS = {"fp32": (0.99999, 1e-3), "fp16": (0.999, 0.05), "bf16": (0.99, 0.2)}
TIMED_RUNS = 5
MOST_SECONDS = 0.5  # after which no further turn is begun: a large model, or a machine that is busy
MOST_NUMBERS = {"cpu": 1 << 16, "cuda": 1 << 20}  # of latents at once: 4 and 64 rows of Stable Diffusion 1.5 at 512

Run = Callable[[dict[str, Tensor]], Tensor]  # inputs by name to the output


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


class CompiledModule(ABC):
    """A UNet or a VAE decoder of a compiled engine, ready to run."""

    why_not_capturable: str | None = None  # as engines.Engine has it

    @abstractmethod
    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Inputs by name, rows first, on the device it was opened for; the output is fresh memory."""

    def with_own_context(self) -> CompiledModule:
        """The same with working memory that no other call uses; itself if it keeps none."""
        return self


@dataclass(frozen=True)
class ModuleSpec:
    """A module with an input a name of its forward; every input but `timestep` has a row a picture."""

    name: str  # unet or vae_decoder
    module: nn.Module
    config: dict[str, Any]  # diffusers' own
    row_shapes: dict[str, tuple[int, ...]]  # of one row; () is the timestep, one number for all rows
    dtype: torch.dtype
    device: torch.device
    conditioning: Conditioning | None = None  # two rows as a run has them: random ones drive a UNet far out

    def example_inputs(self, rows: int, seed: int = 0) -> dict[str, Tensor]:
        """Inputs as a run would give them."""
        known = {} if self.conditioning is None else self.conditioning.inputs
        values: dict[str, Tensor] = {}
        for number, (name, shape) in enumerate(self.row_shapes.items()):
            if name == "timestep":
                values[name] = torch.tensor([501.0], device=self.device)
            elif name in known:
                values[name] = torch.cat([known[name]] * (rows // 2 + 1))[:rows]
            else:
                ids = torch.arange(rows)
                noise = ops.philox_normal(seed, ids, torch.full_like(ids, number), shape, device=self.device)
                values[name] = noise.to(self.dtype)
        return values

    @torch.inference_mode()
    def reference(self, inputs: dict[str, Tensor]) -> Tensor:
        """What torch computes from these inputs."""
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


def module_specs(pipeline: PipelineModules) -> dict[str, ModuleSpec]:
    """The UNet and the VAE decoder of a pipeline, by name."""
    unet, vae = pipeline.unet, pipeline.vae
    latents: dict[str, tuple[int, ...]] = {"latents": pipeline.latent_shape}
    conditioning = pipeline.with_guidance(pipeline.encode(["", "a photo"]), [2.0, 7.5])
    shapes = latents | {"timestep": ()} | {name: tuple(each.shape[1:]) for name, each in conditioning.inputs.items()}
    return {
        "unet": ModuleSpec("unet", Unet(unet).eval(), dict(unet.config), shapes, unet.dtype, unet.device, conditioning),
        "vae_decoder": ModuleSpec("vae_decoder", Decoder(vae).eval(), dict(vae.config), latents, vae.dtype, vae.device),
    }


def verify(spec: ModuleSpec, run: Run, rows: int) -> Verification:
    """Compare with torch on one row and on many, and time both.

    The reference is the pipeline's module in the same dtype on the same device.
    """
    cosine, error = 1.0, 0.0
    fits = MOST_NUMBERS[spec.device.type] // math.prod(spec.row_shapes["latents"])
    rows = max(1, min(rows, fits))
    for count in sorted({1, rows}):
        inputs = spec.example_inputs(count, seed=count)
        expected, got = spec.reference(inputs), run(inputs)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            reason = f"gives {got.dtype} {list(got.shape)}, torch {expected.dtype} {list(expected.shape)}"
            return Verification(ok=False, reason=reason)
        for values, whose in ((got, "it"), (expected, "torch itself")):
            if not values.isfinite().all():
                reason = f"{whose} gives numbers that are not finite in {values.dtype}"
                return Verification(ok=False, reason=reason)
        cosine = min(cosine, _cosine(got, expected))
        error = max(error, _error(got, expected))
    least, most = BOUNDS[dtype_name(spec.dtype)]
    found: dict[str, Any] = {"cosine": round(cosine, 7), "max_error": float(f"{error:.3g}"), "rows": rows}
    if cosine < least or error > most:
        reason = f"differs from torch: cosine {cosine:.5f} (at least {least}), error {error:.3g} (at most {most})"
        return Verification(ok=False, reason=reason, **found)
    torch_ms, engine_ms = _milliseconds(spec.device, (lambda: spec.reference(inputs), lambda: run(inputs)))
    return Verification(ok=True, torch_ms=round(torch_ms, 2), engine_ms=round(engine_ms, 2), **found)


def _cosine(got: Tensor, expected: Tensor) -> float:
    got, expected = got.flatten(1).double(), expected.flatten(1).double()
    return torch.cosine_similarity(got, expected, dim=1).min().item()


def _error(got: Tensor, expected: Tensor) -> float:
    difference = (got.double() - expected.double()).abs().max()
    return (difference / expected.double().abs().max().clamp_min(1e-12)).item()


def _milliseconds(device: torch.device, runs: tuple[Callable[[], Tensor], ...]) -> list[float]:
    """The shortest of a few runs each, taking turns; what else the machine does only adds."""
    best = [float("inf")] * len(runs)
    until = time.perf_counter() + MOST_SECONDS
    for turn in range(TIMED_RUNS):
        if turn and time.perf_counter() > until:
            break
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[i] = min(best[i], (time.perf_counter() - start) * 1e3)
    return best
