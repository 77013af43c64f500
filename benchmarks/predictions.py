"""`python -m benchmarks.predictions`: what each GPU row of docs/performance.md needs at least, before it is measured.

Arithmetic and bytes are counted, without a GPU, and divided by an H200's ceilings, which benchmarks/ceilings.py
measured there (results/2026-11-28_nvidia-h200.jsonl). What a row takes beyond is what its kernels lose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

FLOPS, BYTES = 798e12, 4.19e12  # a second: bfloat16 products of 8,192 x 8,192, and a copy's reads and writes
EXPONENTIALS = 132 * 16 * 1.98e9  # a second: 16 a clock and processor


@dataclass(frozen=True)
class Prediction:
    row: str
    flops: float = 0.0
    bytes: float = 0.0
    exponentials: float = 0.0
    pictures: float = 0.0  # 0: it is a time

    @property
    def milliseconds(self) -> dict[str, float]:
        needs = {"products": self.flops / FLOPS, "bytes": self.bytes / BYTES, "exp": self.exponentials / EXPONENTIALS}
        return {name: 1e3 * seconds for name, seconds in needs.items()}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {ms:.3g} ms" for name, ms in self.milliseconds.items() if ms)
        most = max(self.milliseconds.values())
        rate = f"; at most {1e3 * self.pictures / most:,.3g} images/s" if self.pictures else ""
        return f"{self.row}: {parts}{rate}"


def multi_positive_loss(rows: int = 32_768, dim: int = 256) -> Iterator[Prediction]:
    """A unit is one product of all rows with all rows."""
    unit = 2.0 * rows**2 * dim
    for name, units in (("three units", 3.0), ("forward by symmetry, two and a half", 2.5), ("both, two", 2.0)):
        yield Prediction(f"loss, {rows:,} x {dim}, {name}", units * unit, 4.0 * rows * dim, (units - 1) * rows**2)


def strong_augment(pictures: int = 1024, side: int = 256, size: int = 224) -> Prediction:
    """The picture once in, bfloat16 once out, and float32 colours out and in between resize and finish."""
    scratch = 2 * 4 * 3 * size**2
    moved = pictures * (3.0 * side**2 + 2 * 3 * size**2 + scratch)
    return Prediction(
        f"augmentation, {pictures:,}, {side} to {size}, scratch beyond L2", bytes=moved, pictures=pictures
    )


def diffusion(batch: int = 16) -> Iterator[Prediction]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from benchmarks.gpu_generate import SD15, TURBO

    for name, model, steps, rows in (("SD 1.5", SD15, 50, 2 * batch), ("SD-Turbo", TURBO, 1, batch)):
        with torch.device("meta"):
            unet = UNet2DConditionModel(**{"block_out_channels": (320, 640, 1280, 1280)} | model.unet)
            vae = AutoencoderKL(**model.vae)
            inputs = torch.empty(1, 4, 64, 64), torch.tensor(500), torch.empty(1, *model.text)
            of_unet, of_vae = flops(unet, *inputs), flops(vae.decoder, torch.empty(1, 4, 64, 64))
        yield Prediction(f"{name}, UNet, {rows} rows", rows * of_unet)
        yield Prediction(f"{name}, VAE, {batch}", batch * of_vae)
        yield Prediction(f"{name}, {batch} at once", steps * rows * of_unet + batch * of_vae, pictures=batch)


def training(batch: int = 384) -> Iterator[Prediction]:
    from stablerep.models import create_encoder
    from stablerep.train.flops import flops_of

    for arch in ("vit_base_patch16_224", "vit_small_patch16_224"):
        encoder = create_encoder(arch, 224)
        yield Prediction(f"{arch}, a step of {batch}", batch * flops_of(encoder, None, 224), pictures=batch)


@torch.no_grad()
def flops(module: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        module.eval()(*inputs)
    return float(counter.get_total_flops())


def main() -> None:
    for prediction in (*multi_positive_loss(), strong_augment(), *diffusion(), *training()):
        print(prediction)


if __name__ == "__main__":
    main()
