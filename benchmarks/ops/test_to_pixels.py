"""Pictures of a VAE to pixels: native against the reference, torch.compile of it, torchvision, PIL, and a copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from benchmarks.record import Bench, Case, Work
from stablerep import native
from stablerep.ops import to_pixels
from stablerep.ops.to_pixels import reference

CASES = {"sd15": ((8, 3, 512, 512), 256), "fashion": ((64, 3, 32, 32), None)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_to_pixels(bench: Bench, device: str, name: str, layout: str) -> None:
    shape, image_size = ((2, 3, 16, 16), 8) if bench.quick else CASES[name]
    # Half precision on a GPU, as the VAE leaves it.
    images = (torch.randn(shape, device=device) * 0.5).to(torch.float16 if device == "cuda" else torch.float32)
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)

    def torchvision() -> torch.Tensor:
        resized = images if image_size is None else tv.resize(images, [image_size], antialias=True)
        return tv.to_dtype(resized.add(1).mul(0.5).clamp(0, 1), torch.uint8, scale=True).permute(0, 2, 3, 1)

    def pil() -> np.ndarray:  # what a diffusers pipeline does: bytes at full size, then PIL
        full = reference(images, None).cpu().numpy()
        size = (image_size or shape[3], image_size or shape[2])
        return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in full])

    expected = reference(images, image_size)
    impls: dict[str, Case] = {"reference": lambda: reference(images, image_size)}
    if native.why_not(device) is None:
        pool, slots = torch.empty_like(expected), torch.arange(len(images), device=device)
        actual = to_pixels(images, image_size, impl="native")
        assert (actual.int() - expected.int()).abs().max() <= 1
        assert (actual != expected).float().mean() < 1e-4
        impls = {
            "native": lambda: to_pixels(images, image_size, impl="native"),
            "native into a pool": lambda: to_pixels(images, image_size, pool, slots, impl="native"),
            **impls,
        }
    if not bench.quick:
        compiled = torch.compile(reference)
        assert (compiled(images, image_size).int() - expected.int()).abs().max() <= 1
        impls["torch.compile"] = lambda: compiled(images, image_size)
    impls |= {"torchvision": torchvision, "PIL": pil, "copy of the input": lambda: images.clone()}
    resize = "" if image_size is None else f" to {image_size}"
    work = Work(bytes=images.nbytes + expected.nbytes)
    bench.compare(f"to_pixels {name} {'x'.join(map(str, shape))}{resize} {layout} {images.dtype}", device, impls, work)
