"""From noise and conditioning to decoded pictures: noise, guidance, and the denoising loop that all engines share."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stablerep import ops
from stablerep.engines import Engine
from stablerep.engines.conditioning import Conditioning
from stablerep.generate.cuda import upload

MOST_INDICES = 2**20  # pictures of a prompt; the other 12 of the counter's 32 bits number the draws
MOST_DRAWS = 2**12
RANDOM = (torch.randn_like, torch.rand, torch.rand_like, torch.randint, torch.normal, torch.bernoulli)

Draw = Callable[[int], Tensor]  # number of the draw -> noise [B, C, h, w] float32


def picture_noise(
    seeds: int | Sequence[int],  # one, or [B]
    prompt_ids: Tensor,  # [B] int64
    indices: Tensor,  # [B] int64, 0 .. 2^20 - 1
    shape: tuple[int, ...],  # of one picture
    device: torch.device,
    draw: int = 0,  # 0 is what a picture starts from; a stochastic scheduler draws 1, 2, ... on the way
) -> Tensor:  # [B, *shape] float32
    """Normal noise, for each picture a pure function of (seed, prompt id, index, draw)."""
    assert 0 <= draw < MOST_DRAWS, draw
    prompt_ids, indices = upload(prompt_ids, device), upload(indices, device) + draw * MOST_INDICES
    if isinstance(seeds, int):
        return ops.philox_normal(seeds, prompt_ids, indices, shape, device=device)
    if len(set(seeds)) == 1:
        return ops.philox_normal(seeds[0], prompt_ids, indices, shape, device=device)
    noise = torch.empty(len(seeds), *shape, device=device)
    for seed in dict.fromkeys(seeds):
        rows = upload(torch.tensor([row for row, own in enumerate(seeds) if own == seed]), device)
        of_seed = ops.philox_normal(seed, prompt_ids[rows], indices[rows], shape, device=device)
        noise.index_copy_(0, rows, of_seed)
    return noise


def guide(
    output: Tensor,  # [2B, ...] of the UNet, without text and then with it
    guidance_scale: Tensor,  # [B] float32
    guidance_rescale: float = 0.0,
) -> Tensor:  # [B, ...] float32
    """Guidance (Ho and Salimans 2022), rescaled as by Lin et al. 2023 (arXiv 2305.08891, eq. 14-16).

    Guidance raises the output's standard deviation over a picture; rescaling leads it back to that of the output with
    text, by guidance_rescale (0: not at all, 1: wholly). Plain tensors, for what ops.guided_step does not hold.
    """
    without, with_text = output.float().chunk(2)
    guided = torch.lerp(without, with_text, guidance_scale.reshape(-1, *[1] * (output.ndim - 1)))
    if guidance_rescale == 0:
        return guided
    of_picture = tuple(range(1, output.ndim))
    ratio = with_text.std(of_picture, keepdim=True) / guided.std(of_picture, keepdim=True)
    return guided * (1 + guidance_rescale * (ratio - 1))


@dataclass(frozen=True)
class BatchInputs:
    """What a batch of B pictures is denoised from: all that differs between two replays of one CUDA graph."""

    noise: Tensor  # [B, C, h, w] float32
    guidance_scale: Tensor  # [B] float32
    conditioning: Conditioning  # B rows
    negative: Conditioning  # B rows, or 1

    def tensors(self) -> list[Tensor]:
        halves = (self.conditioning, self.negative)
        return [self.noise, self.guidance_scale, *(value for half in halves for value in half.inputs.values())]

    def map(self, function: Callable[[Tensor], Tensor]) -> BatchInputs:
        conditioning, negative = (
            Conditioning({name: function(value) for name, value in half.inputs.items()})
            for half in (self.conditioning, self.negative)
        )
        return BatchInputs(function(self.noise), function(self.guidance_scale), conditioning, negative)


@dataclass(frozen=True)
class GuidedUnet:
    """The UNet as a schedule calls it. Guidance runs as one batch of two; unguided, the other half is left out."""

    engine: Engine
    conditioning: Conditioning  # B rows; guided, those of the negative prompts before them
    guidance_scale: Tensor  # [B] float32
    guidance_rescale: float
    guided: bool

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:  # [B, ...], guided [2B, ...]
        rows = latents.to(self.conditioning.dtype)
        return self.engine.unet(torch.cat([rows, rows]) if self.guided else rows, timestep, self.conditioning)

    def guide(self, output: Tensor) -> Tensor:  # [B, ...] float32
        return guide(output, self.guidance_scale, self.guidance_rescale) if self.guided else output.float()


@dataclass(frozen=True)
class FusedSchedule:
    """S steps as a table, on the device of the latents: the loop needs no number from the host.

    A step is x0 = a x + b output, then x <- c x + d x0 + e x0_before (`ops.guided_step`).
    """

    timesteps: Tensor  # [S] float32, as the UNet takes them; whole numbers but for euler
    table: Tensor  # [S, 5] float32: a, b, c, d, e
    steps: Tensor  # [S] int64: 0 .. S-1
    init_scale: float = 1.0  # of the noise that the first step starts from
    why_not_capturable: ClassVar[str | None] = None

    def denoise(self, unet: GuidedUnet, latents: Tensor, draw: Draw) -> Tensor:
        x0 = latents  # the first row of a table does not read it
        for step, timestep in zip(self.steps, self.timesteps, strict=True):
            output = unet(latents, timestep)
            if unet.guided and unet.guidance_rescale:
                output = unet.guide(output)  # [B, ...]: the fused step has no more to guide
            latents, x0 = ops.guided_step(latents, output, x0, self.table, step, unet.guidance_scale)
        return latents


@dataclass(frozen=True)
class DiffusersSchedule:
    """A diffusers scheduler whose timesteps are set. It lies on the CPU: its numbers are known without a wait.

    Slower than the fused step by a dozen small operations a step, which a UNet of any size hides. Those that add noise
    on the way get it from our counters: each torch.randn of their step() is answered with the noise of (seed, prompt
    id, index, draw). So no global generator is read, and a picture still does not depend on its batch.
    """

    timesteps: Tensor  # [S] float32 on the device of the latents, as the UNet takes them
    init_scale: float  # of the noise that the first step starts from
    template: Any  # never stepped: each batch steps a copy
    why_not_capturable: ClassVar[str | None] = "diffusers' own scheduler objects compute on the host between the steps"

    def denoise(self, unet: GuidedUnet, latents: Tensor, draw: Draw) -> Tensor:
        return self.integrate(lambda latents, timestep: unet.guide(unet(latents, timestep)), latents, draw)

    def integrate(self, predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, draw: Draw) -> Tensor:
        """predict takes latents [B, C, h, w] and a timestep [] and gives the guided output, float32."""
        scheduler = copy.deepcopy(self.template)
        # As diffusers' pipelines do: what TCD calls eta is 0 unless it is asked for.
        options = {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}
        with _AnswerRandn(draw):
            for at, timestep in zip(scheduler.timesteps, self.timesteps, strict=True):
                output = predict(scheduler.scale_model_input(latents, at), timestep)
                latents = scheduler.step(output, at, latents, **options, return_dict=False)[0]
        return latents


Schedule = FusedSchedule | DiffusersSchedule


@torch.inference_mode()
def denoise(
    engine: Engine,
    schedule: Schedule,
    inputs: BatchInputs,
    draw: Draw,
    *,
    guided: bool,
    guidance_rescale: float = 0.0,
) -> Tensor:  # [B, 3, H, W] as the VAE leaves it, about -1..1
    """The loop and the decoder. A picture depends on its own noise and text, not on its neighbours in the batch.

    Asks the device nothing and, with a FusedSchedule, copies nothing from the host. draw is for stochastic schedulers:
    draws from 1 on.
    """
    # Latents stay float32 through the loop, whatever the UNet computes in: their rounding would be most of the error.
    # A model that takes guidance as an input (LCM) has it in its conditioning, and no unguided half.
    conditioning = inputs.conditioning
    guided = guided and "timestep_cond" not in conditioning.inputs
    if guided:
        conditioning = inputs.negative.expand(len(conditioning)).cat(conditioning)
    unet = GuidedUnet(engine, conditioning, inputs.guidance_scale, guidance_rescale, guided)
    return engine.decode(schedule.denoise(unet, inputs.noise * schedule.init_scale, draw))


class _AnswerRandn(TorchFunctionMode):
    """Answers torch.randn with draws numbered from 1, and refuses all other random numbers."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self._draw, self._count = draw, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.randn:
            self._count += 1
            noise = self._draw(self._count)
            assert tuple(noise.shape) == tuple(args[0]), f"a scheduler asks for noise of shape {args[0]}"
            return noise.to(kwargs.get("dtype") or noise.dtype)
        assert function not in RANDOM, f"a scheduler draws from {function.__name__}, which no seed of ours reaches"
        return function(*args, **kwargs)
