"""Small adaptations of the embedded default, and what they are handed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablerep.adapt.config import AdaptConfig
from stablerep.adapt.run import adapt
from stablerep.adapt.summary import AdaptSummary
from stablerep.generate.pipeline import open_pipeline
from tests.data.pictures import encode, random_pixels

CPU = torch.device("cpu")
LORA = "pytorch_lora_weights.safetensors"


def write_photos(folder: Path, count: int = 8, side: int = 40) -> Path:
    """Photos in two CLASS folders."""
    for number in range(count):
        path = folder / ("bag", "ankle_boot")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(random_pixels(number, side, side + 4)))
    return folder


def config_for(photos: Path, out: Path, **changes: Any) -> AdaptConfig:
    fields: dict[str, Any] = {
        "steps": 4, "batch_size": 2, "rank": 2, "validate_every": 2, "checkpoint_every": 2, "log_every": 1,
        "sample_every": 0, "num_inference_steps": 2, "learning_rate": 1e-3, "device": "cpu", "held_out": 0.25,
    }  # fmt: skip
    return AdaptConfig(photos=str(photos), out=out, **fields | changes)


def open_model(model: str, device: torch.device, dtype: torch.dtype, model_config: str | None) -> Any:
    return open_pipeline(model, device, (), dtype, model_config)


def paint_grey(
    model: Any, prompts: Sequence[str], *, seed: int, guidance_scale: float, num_inference_steps: int
) -> Tensor:
    """In place of painting, where the pictures do not matter."""
    side = model.latent_shape[1] * 2 ** (len(model.vae.config.block_out_channels) - 1)
    return torch.full((len(prompts), side, side, 3), 127, dtype=torch.uint8)


@dataclass
class Request:
    """Asks to stop when it has been asked so often."""

    polls_left: float = float("inf")

    @property
    def signal(self) -> int:
        self.polls_left -= 1
        return signal.SIGTERM if self.polls_left < 0 else 0


@contextmanager
def never() -> Iterator[Request]:
    yield Request()


def run(config: AdaptConfig, **handed: Any) -> AdaptSummary:
    return adapt(config, **{"open_model": open_model, "paint": paint_grey, "listening": never} | handed)


def stop_after(polls: int) -> Callable[[], AbstractContextManager[Request]]:
    """In place of listening to signals: a request to stop that comes when it has been asked for so often."""

    @contextmanager
    def listening() -> Iterator[Request]:
        yield Request(polls)

    return listening


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
