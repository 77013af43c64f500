"""Strong augmentation from decoded pictures, on one thread or a GPU, against torchvision, PIL, DALI and a copy."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.record import Bench, Case, Work
from stablerep import native
from stablerep.ops import AugmentSpec, strong_augment

SIZES = {"imagenet": (256, 224), "fashion": (32, 48)}
BATCH = {"cpu": {"imagenet": 48, "fashion": 1024}, "cuda": {"imagenet": 1024, "fashion": 8192}}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SIZES)
def test_strong_augment(bench: Bench, device: str, name: str) -> None:
    side, size = SIZES[name]
    batch = 4 if bench.quick else BATCH[device][name]
    spec = AugmentSpec(image_size=size, blur_sigma=(0.1 * size / 224, 2 * size / 224), dtype=DTYPES[device])
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, side // 8, side // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    images = (smooth * 255).byte().permute(0, 2, 3, 1).contiguous().to(device)
    keys = torch.stack([torch.arange(batch)] * 3, dim=1).to(device)

    few = slice(0, 8)
    expected = strong_augment(images[few], keys[few], spec, impl="reference").float()
    impls: dict[str, Case] = {}
    if native.why_not(device) is None:
        rounding = torch.finfo(spec.dtype).eps
        for given_images in (images[few], list(images[few])):
            actual = strong_augment(given_images, keys[few], spec, impl="native").float()
            torch.testing.assert_close(actual, expected, rtol=rounding, atol=2e-4)
        # A loader has a list; on a GPU its table costs Python more time than the pictures take.
        impls["native"] = lambda: strong_augment(images, keys, spec, impl="native")
        impls["native, channels_last"] = lambda: strong_augment(
            images, keys, spec, impl="native", memory_format=torch.channels_last
        )
    result = torch.empty(batch, 3, size, size, dtype=spec.dtype, device=device)
    impls["copy of the bytes written"] = lambda: result.clone()
    chw = images.permute(0, 3, 1, 2).contiguous()
    as_uint8 = torchvision_recipe(spec, v2.ToDtype(spec.dtype, scale=True), last=True)
    as_float = torchvision_recipe(spec, v2.ToDtype(torch.float32, scale=True), last=False)
    if device == "cpu" or name == "imagenet":  # picture by picture a GPU takes half a millisecond, whatever their size
        impls["torchvision v2, uint8"] = lambda: torch.stack([as_uint8(picture) for picture in chw])
        impls["torchvision v2, float"] = lambda: torch.stack([as_float(picture) for picture in chw])
    if device == "cpu":
        pictures = [Image.fromarray(picture) for picture in images.numpy()]
        as_pil = pil_recipe(spec)
        impls["torchvision, PIL"] = lambda: torch.stack([as_pil(picture) for picture in pictures])
        if importlib.util.find_spec("nvidia.dali") is not None:
            impls["DALI"] = dali_case(images.numpy(), spec)
    else:  # one draw for all of them: not what training wants, but the most that torchvision can do at once
        impls["torchvision v2, float, one draw for the batch"] = lambda: as_float(chw)
    del smooth, coarse
    on = "1 thread" if device == "cpu" else "GPU"
    work = Work(bytes=images.nbytes + result.nbytes)
    bench.compare(
        f"strong_augment {side} to {size}, {batch} pictures, {str(spec.dtype)[6:]}, {on}", device, impls, work
    )


def torchvision_recipe(spec: AugmentSpec, to_dtype: v2.Transform, last: bool) -> Callable[[Tensor], Tensor]:
    window = 2 * int(np.ceil(3 * spec.blur_sigma[1])) + 1
    steps = [
        v2.RandomResizedCrop(spec.image_size, spec.scale, spec.ratio, antialias=True),
        v2.RandomApply([v2.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)], spec.jitter),
        v2.RandomGrayscale(spec.grey),
        v2.RandomApply([v2.GaussianBlur(window, spec.blur_sigma)], spec.blur),
        v2.RandomHorizontalFlip(spec.flip),
    ]
    steps = [*steps, to_dtype] if last else [to_dtype, *steps]
    return v2.Compose([*steps, v2.Normalize(spec.mean, spec.std)])


def pil_recipe(spec: AugmentSpec) -> Callable[[Image.Image], Tensor]:
    def blur(picture: Image.Image) -> Image.Image:  # of PIL's own, as in the public training codes: box filters
        return picture.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(*spec.blur_sigma))))

    recipe = torchvision_recipe(spec, v2.ToDtype(spec.dtype, scale=True), last=False).transforms  # type: ignore[attr-defined]
    crop, jitter, grey, _, flip, normalize = recipe[1:]
    to_tensor = [v2.PILToTensor(), v2.ToDtype(spec.dtype, scale=True)]
    return v2.Compose([crop, jitter, grey, v2.RandomApply([v2.Lambda(blur)], spec.blur), flip, *to_tensor, normalize])


def dali_case(images: np.ndarray, spec: AugmentSpec) -> Case:
    """DALI's operators on one thread of the CPU; numbers drawn beforehand, colours always in the same order."""
    from nvidia.dali import fn, pipeline_def, types

    number, side = images.shape[:2]
    random = np.random.default_rng(0)
    area, ratio = random.uniform(*spec.scale, number), np.exp(random.uniform(*np.log(spec.ratio), number))
    edges = np.minimum(np.sqrt(np.stack([area / ratio, area * ratio], 1)), 1) * side
    start = random.random((number, 2)) * (side - edges)
    jittered = random.random(number) < spec.jitter
    twist = 1 + 0.4 * jittered[:, None] * random.uniform(-1, 1, (number, 3))
    twist[random.random(number) < spec.grey, 2] = 0  # saturation
    sigma = random.uniform(*spec.blur_sigma, number)
    window = np.where(random.random(number) < spec.blur, 2 * np.ceil(3 * sigma) + 1, 1).astype(np.int32)
    numbers = (start, start + edges, twist, 36 * jittered * random.uniform(-1, 1, number), sigma)
    mirror = (random.random(number) < spec.flip).astype(np.int32)
    inputs: tuple[Any, ...] = (images, *(n.astype(np.float32) for n in numbers), window, mirror)

    @pipeline_def(
        batch_size=number, num_threads=1, device_id=None, exec_pipelined=False, exec_async=False, prefetch_queue_depth=1
    )
    def build() -> Any:
        pictures, begin, end, factors, hue, blur, blur_window, flip = fn.external_source(
            lambda: inputs, num_outputs=8, batch=True, no_copy=True, layout=["HWC"] + [""] * 7
        )
        size = (spec.image_size, spec.image_size)
        x = fn.resize(pictures, size=size, roi_start=begin, roi_end=end, interp_type=types.INTERP_LINEAR)
        x = fn.color_twist(x, brightness=factors[0], contrast=factors[1], saturation=factors[2], hue=hue)
        x = fn.gaussian_blur(x, sigma=blur, window_size=blur_window)
        mean, std = ([255 * value for value in values] for values in (spec.mean, spec.std))
        return fn.crop_mirror_normalize(x, mirror=flip, mean=mean, std=std, output_layout="CHW", dtype=types.FLOAT)

    pipeline = build()
    (first,) = pipeline.run()
    assert first.as_tensor().shape() == [number, 3, spec.image_size, spec.image_size]
    return pipeline.run
