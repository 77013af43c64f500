"""What only a GPU can show of painting: a graph's bytes, that nothing waits, files made on the device."""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import stablerep
from stablerep.engines.torch import TorchEngine
from stablerep.generate.config import FUSED_SCHEDULERS, GenerateConfig
from stablerep.generate.encode import HostEncode, ImageCodec, why_not_on_device
from stablerep.generate.painter import BatchSize, Painter, PictureId, encode_prompts, paint_batch, paint_shard
from stablerep.generate.pipeline import Pipeline, open_pipeline
from stablerep.generate.schedulers import open_schedule
from stablerep.prompts import Prompt
from tests.generate.folders import digests

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
CUDA = torch.device("cuda", 0)
PROMPTS = [
    Prompt(0, "a photo of a bag"),
    Prompt(1, "a photo of a coat", guidance_scale=3.0, seed=7),
    Prompt(2, "a photo of a shirt", negative_prompt="dark"),
]


@pytest.fixture(scope="module")
def on_cuda() -> Pipeline:
    return open_pipeline("default", CUDA)


def painter(engine: TorchEngine, *, graphs: bool = True, **changes) -> Painter:
    """Pictures as png, so that each level counts."""
    fields = {"num_images_per_prompt": 14, "num_inference_steps": 5, "image_format": "png", **changes}
    config = GenerateConfig(prompts=Path("p.txt"), out=Path("out"), batch_size=8, **fields)
    schedule = open_schedule(config.scheduler, engine.pipeline.scheduler_config, config.num_inference_steps, CUDA)
    made = Painter(engine.pipeline, engine, schedule, config, BatchSize(8))
    if not graphs:
        vars(made)["graphs"] = None
    return made


@pytest.mark.parametrize("name", FUSED_SCHEDULERS)
def test_a_graph_has_the_bytes_of_plain_launches(on_cuda: Pipeline, name: str) -> None:
    engine = TorchEngine(on_cuda)
    graphed = painter(engine, scheduler=name)
    pictures = [paint_shard(graphed, PROMPTS), paint_shard(graphed, PROMPTS)]
    assert graphed.graphs._graphs, "nothing was captured"
    plain = paint_shard(painter(engine, graphs=False, scheduler=name), PROMPTS)
    assert str(pictures) == str([plain, plain])  # files, quality (NaN is no score) and verdicts


def batches(engine: TorchEngine) -> Callable[[], None]:
    """Launches a batch whose graph is there."""
    made = painter(engine)
    encoded = encode_prompts(made, PROMPTS)
    stream = torch.cuda.Stream()

    def launch() -> None:
        with torch.cuda.stream(stream):
            paint_batch(made, encoded, [PictureId(row, index) for index in range(2) for row in (0, 1, 2)])

    for _ in range(3):  # warm-up, capture, replay
        launch()
        torch.cuda.synchronize()
    assert made.graphs._graphs
    return launch


def test_replays_never_wait_and_copy_nothing_down(on_cuda: Pipeline) -> None:
    launch = batches(TorchEngine(on_cuda))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            launch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            launch()
    counts = {event.key: event.count for event in seen.key_averages()}
    waits = ("cudaStreamSynchronize", "cudaEventSynchronize", "Memcpy DtoH", "cudaMalloc")
    found = {key: count for key, count in counts.items() if key.startswith(waits)}
    assert not found, found
    assert counts.get("cudaGraphLaunch") == 3, counts


def test_a_capture_that_asks_the_device_falls_back_and_cuda_goes_on(
    on_cuda: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Asking(TorchEngine):
        def decode(self, latents: Tensor) -> Tensor:
            if torch.cuda.is_current_stream_capturing():
                latents.sum().item()
            return super().decode(latents)

    with caplog.at_level(logging.INFO, "stablerep.generate"):
        made = painter(Asking(on_cuda))
        pictures = [paint_shard(made, PROMPTS), paint_shard(made, PROMPTS)]
    (said,) = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    assert "capturing one failed" in said
    plain = paint_shard(painter(TorchEngine(on_cuda), graphs=False), PROMPTS)
    assert str(pictures) == str([plain, plain])


def test_a_schedule_of_diffusers_paints_without_graphs(on_cuda: Pipeline) -> None:
    made = painter(TorchEngine(on_cuda), scheduler="euler_ancestral")
    assert [len(of_prompt) for of_prompt in paint_shard(made, PROMPTS)] == [14] * 3
    assert not made.graphs._graphs


@pytest.mark.parametrize("size", [(16, 16), (63, 127), (512, 512)])
def test_files_made_on_the_device_are_what_pil_would_show(size: tuple[int, int]) -> None:
    if reason := why_not_on_device("jpg", CUDA):
        pytest.skip(reason)
    height, width = size
    ramp = torch.linspace(0, 255, width, device=CUDA).expand(height, width)
    picture = torch.stack([ramp, 255 - ramp, torch.full_like(ramp, 30)], -1).byte()
    pictures = torch.stack([picture, picture.flip(1)])
    for file, theirs, pixels in zip(ImageCodec(CUDA)(pictures), HostEncode("jpg")(pictures), pictures, strict=True):
        image, expected = Image.open(io.BytesIO(file.data)), Image.open(io.BytesIO(theirs.data))
        assert (image.size, image.mode) == ((width, height), "RGB")
        assert (image.layer, image.quantization) == (expected.layer, expected.quantization)
        error = np.asarray(image).astype(float) - pixels.cpu().numpy()
        assert 10 * np.log10(255**2 / (error**2).mean()) > 38  # dB


def test_a_lost_shard_comes_back_the_same(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fields = {"num_images_per_prompt": 7, "num_inference_steps": 4, "prompts_per_shard": 2, "batch_size": 4}
    stablerep.generate(prompts=prompts, out=out, device="cuda", **fields)
    whole = digests(out)
    (out / "000001_stats.json").unlink()
    assert stablerep.generate(prompts=prompts, out=out, device="cuda", **fields).images_made == 14
    assert digests(out) == whole
