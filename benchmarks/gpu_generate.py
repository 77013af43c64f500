"""What `make gpu-check` asks of painting: the tests that need a GPU, and pictures per second of large models.

The models have the sizes of Stable Diffusion and random weights: nothing is downloaded, and the time is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.checks import SEED, Numbers, Skip, run_tests

if TYPE_CHECKING:  # diffusers may be missing; then the checks are skipped
    from stablerep.generate.pipeline import Pipeline

CUDA = torch.device("cuda", 0)


@dataclass(frozen=True)
class Model:
    """Sizes of a pipeline; what is not named is diffusers' default, which is Stable Diffusion's."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: tuple[int, int]  # tokens, width
    scheduler: dict[str, Any]


SD15 = Model(
    unet={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    vae={
        "latent_channels": 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    text=(77, 768),
    scheduler={"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1},
)
TURBO = Model(
    unet={
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    vae=SD15.vae,
    text=(77, 1024),
    scheduler=SD15.scheduler | {"timestep_spacing": "trailing"},
)


def painting_tests() -> Numbers:
    """A graph's bytes, no waiting, files made on the device: the tests that the CPU skips."""
    import diffusers  # noqa: F401  without it there is nothing to collect

    return run_tests("tests/generate/test_on_cuda.py")


def sd15_rate() -> Numbers:
    """Stable Diffusion 1.5's sizes at 512, 50 steps of DDIM with guidance, 16 at once; to reach: 5.5 images/s."""
    return rates(random_pipeline(SD15, CUDA, torch.float16), steps=50, guidance_scale=2.0, scheduler="ddim", batches=2)


def sd15_compiled_rate() -> Numbers:
    """The same with --compile, in a graph."""
    model = random_pipeline(SD15, CUDA, torch.float16)
    return compiled_rate(model, steps=50, guidance_scale=2.0, scheduler="ddim", batches=3)


def turbo_rate() -> Numbers:
    """SD-Turbo's sizes at 512, one step, 16 at once; to reach: 120 images/s."""
    model = random_pipeline(TURBO, CUDA, torch.float16)
    return rates(model, steps=1, guidance_scale=1.0, scheduler="euler", batches=12)


def turbo_compiled_rate() -> Numbers:
    """The same with --compile, in a graph."""
    model = random_pipeline(TURBO, CUDA, torch.float16)
    return compiled_rate(model, steps=1, guidance_scale=1.0, scheduler="euler", batches=12)


def random_pipeline(model: Model, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """A pipeline of these sizes; its prompts are encoded as noise."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from stablerep.engines.conditioning import Conditioning
    from stablerep.generate.pipeline import Pipeline

    class RandomPipeline(Pipeline):
        def encode(self, prompts: list[str]) -> Conditioning:
            generator = torch.Generator(device).manual_seed(SEED)
            text = torch.randn((len(prompts), *model.text), generator=generator, device=device)
            return Conditioning({"text": text.to(dtype)})

    with device:
        unet = UNet2DConditionModel(**{"block_out_channels": (320, 640, 1280, 1280)} | model.unet)
        vae = AutoencoderKL(**model.vae)
    for module in (unet, vae):
        module.to(dtype).eval().requires_grad_(False)  # NCHW, as open_pipeline on CUDA
    return RandomPipeline(None, None, unet, vae, model.scheduler, "random")


def rates(
    pipeline: Pipeline, *, steps: int, guidance_scale: float, scheduler: str, batches: int, batch: int = 16
) -> Numbers:
    """Pictures per second from embeddings to files: with graphs, without, and of diffusers' own loop."""
    import diffusers

    graphed, numbers = paint_rate(pipeline, "graph", steps, guidance_scale, scheduler, batches, batch)
    plain, of_plain = paint_rate(pipeline, "eager", steps, guidance_scale, scheduler, batches, batch, graphs=False)
    numbers |= of_plain
    numbers["same_bytes"] = str(graphed) == str(plain)  # files, marks; pixels on the CPU
    assert numbers["same_bytes"], "graph and eager launches differ"
    kind = {"ddim": diffusers.DDIMScheduler, "euler": diffusers.EulerDiscreteScheduler}[scheduler]
    theirs = diffusers.StableDiffusionPipeline(
        pipeline.vae, None, None, pipeline.unet, kind.from_config(pipeline.scheduler_config), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)

    def plain_loop() -> None:
        text = pipeline.encode([""] * batch).text
        theirs(
            prompt_embeds=text, negative_prompt_embeds=text, num_inference_steps=steps, guidance_scale=guidance_scale,
            output_type="np",
        )  # fmt: skip

    plain_loop()
    rounds = max(1, batches // 2)
    _, seconds = timed(lambda: [plain_loop() for _ in range(rounds)])
    return numbers | {"images_per_second_diffusers": rounds * batch / seconds}


def compiled_rate(
    pipeline: Pipeline, *, steps: int, guidance_scale: float, scheduler: str, batches: int, batch: int = 16
) -> Numbers:
    """Pictures per second from embeddings to files, networks compiled by torch, in a graph."""
    return paint_rate(pipeline, "compiled", steps, guidance_scale, scheduler, batches, batch, compiled=True)[1]


def paint_rate(
    pipeline: Pipeline,
    name: str,
    steps: int,
    guidance_scale: float,
    scheduler: str,
    batches: int,
    batch: int,
    *,
    graphs: bool = True,
    compiled: bool = False,
) -> tuple[list[Any], Numbers]:
    """The pictures of some batches, and how many were made per second."""
    from stablerep.engines.torch import TorchEngine
    from stablerep.generate.config import GenerateConfig
    from stablerep.generate.encode import decide_encoder
    from stablerep.generate.painter import BatchSize, Painter, paint_shard
    from stablerep.generate.schedulers import open_schedule
    from stablerep.prompts import Prompt

    device = pipeline.unet.device
    config = GenerateConfig(
        prompts=Path("p.txt"), out=Path("no such folder"), scheduler=scheduler, guidance_scale=guidance_scale,
        num_inference_steps=steps, num_images_per_prompt=1, batch_size=batch, screen_retries=0,
    )  # fmt: skip
    config = decide_encoder(config, device)
    prompts = [Prompt(number, "") for number in range(batches * batch)]
    schedule = open_schedule(scheduler, pipeline.scheduler_config, steps, device)
    engine = TorchEngine(pipeline, compiled=compiled)
    painter = Painter(pipeline, engine, schedule, config, BatchSize(batch))
    if not graphs:
        vars(painter)["graphs"] = None
    paint_shard(painter, prompts[: 2 * batch])  # warm-up, then a capture
    pictures, seconds = timed(lambda: paint_shard(painter, prompts))
    assert painter.batch_size.value == batch, "the batch did not fit"
    if graphs:
        assert painter.graphs is not None and painter.graphs._graphs, "nothing was captured"
    return pictures, {
        f"images_per_second_{name}": len(prompts) / seconds,
        f"kept_share_{name}": sum(each.pixels is not None for (each,) in pictures) / len(prompts),
        "jpeg_encoder": config.jpeg_encoder,
        "batch": batch,
    }


def jpeg_rates() -> Numbers:
    """Pictures of 512 x 512 on the GPU to files on the host: nvImageCodec, and PIL on one core with its copy."""
    from stablerep.generate.encode import HostEncode, ImageCodec, why_not_on_device

    if reason := why_not_on_device("jpg", CUDA):
        raise Skip(reason)
    coarse = torch.rand(64, 3, 32, 32, device=CUDA)
    smooth = torch.nn.functional.interpolate(coarse, (512, 512), mode="bicubic").clamp(0, 1)
    pixels = (smooth * 255).byte().permute(0, 2, 3, 1).contiguous()
    numbers: Numbers = {}
    for name, encode in (("nvimgcodec", ImageCodec(CUDA)), ("pil", HostEncode("jpg"))):
        encode(pixels)
        files, seconds = timed(lambda encode=encode: [encode(pixels) for _ in range(4)])
        numbers[f"images_per_second_{name}"] = 4 * len(pixels) / seconds
        numbers[f"bytes_{name}"] = sum(len(file.data) for file in files[0]) / len(pixels)
    return numbers


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    result = run()
    wait()
    return result, time.perf_counter() - start
