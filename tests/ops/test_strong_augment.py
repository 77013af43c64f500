"""Strong augmentation against torchvision, parameter by parameter; its draws; odd sizes; bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from stablerep import native
from stablerep.ops import AugmentSpec, ImplUnavailable, strong_augment
from stablerep.ops.strong_augment import _native, draws, reference
from stablerep.ops.strong_augment.draws import AugmentParams

NATIVE_MISSING = native.why_not("cpu")
IMPLS = [
    pytest.param("native", marks=pytest.mark.skipif(NATIVE_MISSING is not None, reason=NATIVE_MISSING or "")),
    "reference",
]
PLAIN = AugmentSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # the colours themselves
OFF = replace(PLAIN, flip=0, jitter=0, grey=0, blur=0, downsample=0, scale=(1.0, 1.0))
TOLERANCE = 2e-5  # of colours 0 .. 1; a step of 8 bits is 4e-3
FORMATS = [torch.contiguous_format, torch.channels_last]


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth colours with fine noise, and patches of pure and of equal colours."""
    noise = np.random.default_rng(seed)
    coarse = torch.from_numpy(noise.random((1, 3, 4, 5)))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)[0]
    pixels = (smooth.permute(1, 2, 0).numpy() * 300 - 22 + noise.normal(0, 8, (height, width, 3))).clip(0, 255)
    pixels[: height // 4, : width // 5] = (255, 0, 0)
    pixels[height // 4 : height // 2, : width // 5] = 128
    return torch.from_numpy(np.ascontiguousarray(pixels, np.uint8))


def unchanged(height: int, width: int, number: int = 1) -> AugmentParams:
    rows = {field.name: torch.zeros(number, dtype=torch.int32) for field in fields(AugmentParams)}
    ones = {name: torch.ones(number) for name in ("brightness", "contrast", "saturation")}
    box = torch.tensor([[0, 0, height, width]], dtype=torch.int32).repeat(number, 1)
    order = torch.arange(4, dtype=torch.int32).repeat(number, 1)
    return AugmentParams(
        **{**rows, **ones, "box": box, "order": order, "hue": torch.zeros(number), "blur_sigma": torch.zeros(number)}
    )


def apply(impl: str, pictures: list[Tensor], params: AugmentParams, spec: AugmentSpec) -> Tensor:
    if impl == "native":
        return _native.apply(pictures, params.pack(), spec)
    return reference.strong_augment(pictures, params, spec)


def torchvision_picture(x: Tensor) -> Tensor:  # [H, W, 3] uint8 -> [3, H, W] float64
    return x.permute(2, 0, 1).double() / 255


SETTINGS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "nothing": ({}, lambda x: x),
    "flip": ({"flip": [1]}, TF.horizontal_flip),
    "brightness": ({"brightness": [1.37]}, lambda x: TF.adjust_brightness(x, 1.37)),
    "darkness": ({"brightness": [0.0]}, lambda x: TF.adjust_brightness(x, 0.0)),
    "contrast": ({"contrast": [1.4]}, lambda x: TF.adjust_contrast(x, 1.4)),
    "less contrast": ({"contrast": [0.25]}, lambda x: TF.adjust_contrast(x, 0.25)),
    "saturation": ({"saturation": [1.9]}, lambda x: TF.adjust_saturation(x, 1.9)),
    "no saturation": ({"saturation": [0.0]}, lambda x: TF.adjust_saturation(x, 0.0)),
    "hue": ({"hue": [0.1]}, lambda x: TF.adjust_hue(x, 0.1)),
    "hue back": ({"hue": [-0.07]}, lambda x: TF.adjust_hue(x, -0.07)),
    "opposite hue": ({"hue": [0.5]}, lambda x: TF.adjust_hue(x, 0.5)),
    "hue back to the opposite": ({"hue": [-0.5]}, lambda x: TF.adjust_hue(x, -0.5)),
    "grey": ({"grey": [1]}, lambda x: TF.rgb_to_grayscale(x, 3)),
    "faint blur": ({"blur_sigma": [0.1]}, lambda x: TF.gaussian_blur(x, [3, 3], [0.1, 0.1])),
    "blur": ({"blur_sigma": [1.3]}, lambda x: TF.gaussian_blur(x, [9, 9], [1.3, 1.3])),
    "strongest blur": ({"blur_sigma": [2.0]}, lambda x: TF.gaussian_blur(x, [13, 13], [2.0, 2.0])),
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", [15, 64, 127])
def test_each_parameter_is_torchvision_s(impl: str, name: str, size: int) -> None:
    changes, expected = SETTINGS[name]
    pixels = picture(size, size)
    params = replace(unchanged(size, size), **{key: torch.tensor(value) for key, value in changes.items()})
    actual = apply(impl, [pixels], params, replace(OFF, image_size=size))
    torch.testing.assert_close(actual[0].double(), expected(torchvision_picture(pixels)), rtol=0, atol=TOLERANCE)


BOXES = [
    ((100, 120), (0, 0, 100, 120), 64),
    ((100, 120), (7, 11, 30, 40), 64),  # enlarged
    ((100, 120), (3, 5, 97, 20), 33),  # smaller along one axis, larger along the other
    ((100, 120), (99, 119, 1, 1), 16),  # one pixel
    ((640, 30), (0, 0, 640, 30), 16),  # 40 times smaller
    ((50, 900), (2, 0, 40, 900), 127),
    ((70, 70), (3, 4, 64, 64), 64),  # as it is
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("sides", "box", "size"), BOXES)
@pytest.mark.parametrize("flip", [0, 1])
def test_crop_and_resize_are_torchvision_s(
    impl: str, sides: tuple[int, int], box: tuple[int, int, int, int], size: int, flip: int
) -> None:
    pixels = picture(*sides)
    params = replace(unchanged(*sides), box=torch.tensor([box], dtype=torch.int32), flip=torch.tensor([flip]))
    actual = apply(impl, [pixels], params, replace(OFF, image_size=size))
    expected = TF.resized_crop(torchvision_picture(pixels), *box, size=[size, size], antialias=True)
    expected = TF.horizontal_flip(expected) if flip else expected
    torch.testing.assert_close(actual[0].double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sides", [(256, 256), (300, 129), (131, 400)])
@pytest.mark.parametrize("small_side", [1, 64, 128])
def test_downsampling_is_torchvision_s(impl: str, sides: tuple[int, int], small_side: int) -> None:
    pixels = picture(*sides)
    box = (20, 11, sides[0] - 30, sides[1] - 40)
    params = replace(
        unchanged(*sides), box=torch.tensor([box], dtype=torch.int32), small_side=torch.tensor([small_side])
    )
    actual = apply(impl, [pixels], params, replace(OFF, image_size=96, downsample=1.0, downsample_sizes=(1, 1)))
    small = TF.resize(torchvision_picture(pixels), [small_side], antialias=True)
    expected = TF.resized_crop(TF.resize(small, list(sides), antialias=True), *box, size=[96, 96], antialias=True)
    torch.testing.assert_close(actual[0].double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("impl", IMPLS)
def test_colours_change_in_the_order_drawn(impl: str) -> None:
    pixels, number = picture(48, 48), 24
    by_operation = [
        lambda x: TF.adjust_brightness(x, 1.4),
        lambda x: TF.adjust_contrast(x, 0.7),
        lambda x: TF.adjust_saturation(x, 1.3),
        lambda x: TF.adjust_hue(x, 0.08),
    ]
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[[len(set(order.tolist())) == 4 for order in orders]].int()
    params = replace(
        unchanged(48, 48, number), order=orders, brightness=torch.full((number,), 1.4),
        contrast=torch.full((number,), 0.7), saturation=torch.full((number,), 1.3), hue=torch.full((number,), 0.08),
    )  # fmt: skip
    actual = apply(impl, [pixels] * number, params, replace(OFF, image_size=48))
    for row, order in enumerate(orders.tolist()):
        expected = torchvision_picture(pixels)
        for operation in order:
            expected = by_operation[operation](expected)
        torch.testing.assert_close(actual[row].double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(NATIVE_MISSING is not None, reason=NATIVE_MISSING or "")
@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 80), seed=st.integers(0, 2**64 - 1),
    keys=st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 3), sigma=st.floats(0.05, 8), dtype=st.sampled_from([0, 1, 2]),
    channels_last=st.booleans(), stacked=st.booleans(),
)  # fmt: skip
def test_native_is_the_reference(
    height: int, width: int, size: int, seed: int, keys: tuple[int, int, int], sigma: float, dtype: int,
    channels_last: bool, stacked: bool,
) -> None:  # fmt: skip
    spec = AugmentSpec(
        image_size=size, seed=seed, blur_sigma=(sigma / 2, sigma), downsample=0.3, downsample_sizes=(5, 20),
        dtype=(torch.float32, torch.bfloat16, torch.float16)[dtype],
    )  # fmt: skip
    pictures = [picture(height, width, seed=row) for row in range(3)]
    key = torch.tensor([keys, (0, 1, 2), (5, 4, 3)])
    memory_format = FORMATS[channels_last]
    images = torch.stack(pictures) if stacked else pictures
    actual = strong_augment(images, key, spec, impl="native", memory_format=memory_format)
    params = draws.draw(spec, key, torch.tensor([[height, width]] * 3))
    assert torch.equal(_native.draw(pictures, key, spec), params.pack())
    exact = reference.strong_augment(pictures, params, spec, torch.float64)
    assert actual.shape == exact.shape and actual.dtype == spec.dtype
    assert actual.is_contiguous(memory_format=memory_format)
    rounding = torch.finfo(spec.dtype).eps if dtype else 0.0
    torch.testing.assert_close(actual.double(), exact, rtol=rounding / 2 * 1.001, atol=TOLERANCE / min(spec.std))


@pytest.mark.skipif(NATIVE_MISSING is not None, reason=NATIVE_MISSING or "")
def test_native_errs_no_more_than_the_reference() -> None:
    pictures = [picture(256, 256, seed=row) for row in range(12)]
    keys, spec = torch.arange(36).reshape(12, 3), AugmentSpec()
    params = draws.draw(spec, keys, torch.full((12, 2), 256))
    exact = reference.strong_augment(pictures, params, spec, torch.float64)
    of_native = (strong_augment(pictures, keys, spec, impl="native").double() - exact).abs().max()
    of_reference = (strong_augment(pictures, keys, spec, impl="reference").double() - exact).abs().max()
    assert of_native <= 2 * of_reference


@pytest.mark.parametrize("impl", IMPLS)
def test_batch_neighbours_and_threads_do_not_matter(impl: str) -> None:
    sides = [(1, 1), (40, 56), (3, 200), (90, 31), (40, 56)]
    pictures = [picture(*side, seed=row) for row, side in enumerate(sides)]
    keys, spec = (
        torch.tensor([[0, 7, 1], [2, 2**40, 0], [1, 2, 3], [-1, -2, -3], [4, 4, 4]]),
        AugmentSpec(image_size=37),
    )
    together = strong_augment(pictures, keys, spec, impl=impl)
    assert together.isfinite().all()
    for row in range(5):
        alone = strong_augment(pictures[row : row + 1], keys[row : row + 1], spec, impl=impl)
        assert torch.equal(alone[0], together[row])
    stacked = strong_augment(torch.stack([pictures[1], pictures[4]]), keys[[1, 4]], spec, impl=impl)
    assert torch.equal(stacked, together[[1, 4]])
    assert not torch.equal(together, strong_augment(pictures, keys, replace(spec, seed=1), impl=impl))
    if impl == "native":  # torch's sums depend on the threads
        assert torch.equal(strong_augment(pictures, keys, spec, impl=impl, threads=3), together)


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_not_contiguous_is_read_as_it_looks(impl: str) -> None:
    wide = picture(60, 80)
    spec, keys = AugmentSpec(image_size=24), torch.arange(6).reshape(2, 3)
    views = [wide[5:50:2, 3:60], wide.transpose(0, 1)]
    copies = [view.contiguous() for view in views]
    for images, same in (
        (views, copies),
        (wide[None, :, ::2].expand(2, -1, -1, -1), wide[None, :, ::2].repeat(2, 1, 1, 1)),
    ):
        assert torch.equal(
            strong_augment(images, keys.T.contiguous().T, spec, impl=impl), strong_augment(same, keys, spec, impl=impl)
        )


def test_draws_have_the_recipe_s_ranges_and_probabilities() -> None:
    number = 40_000
    keys = torch.stack([torch.arange(number) % 3, torch.arange(number), torch.arange(number) % 2], dim=1)
    p = draws.draw(AugmentSpec(), keys, torch.full((number, 2), 256))
    for drawn, probability in [
        (p.flip == 1, 0.5), (p.grey == 1, 0.2), (p.blur_sigma > 0, 0.5), (p.hue != 0, 0.8), (p.brightness != 1, 0.8),
        (p.small_side == 64, 0.025), (p.small_side == 128, 0.025), (p.small_side == 0, 0.95),
    ]:  # fmt: skip
        assert abs(drawn.double().mean() - probability) < 4 * (probability * (1 - probability) / number) ** 0.5
    jittered = p.hue != 0
    for values, low, high in [
        (p.brightness[jittered], 0.6, 1.4), (p.contrast[jittered], 0.6, 1.4), (p.saturation[jittered], 0.6, 1.4),
        (p.hue[jittered], -0.1, 0.1), (p.blur_sigma[p.blur_sigma > 0], 0.1, 2.0),
    ]:  # fmt: skip
        assert_uniform(values.double(), low, high)
    codes = p.order.long() @ torch.tensor([64, 16, 4, 1])
    counts = torch.unique(codes, return_counts=True)[1]
    assert len(counts) == 24 and (counts - number / 24).abs().max() < 5 * (number / 24) ** 0.5
    numbers = torch.stack([p.brightness, p.contrast, p.saturation, p.hue, p.blur_sigma], dim=1)[
        jittered & (p.blur_sigma > 0)
    ]
    assert (torch.corrcoef(numbers.double().T).fill_diagonal_(0)).abs().max() < 5 / len(numbers) ** 0.5


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    """Kolmogorov and Smirnov's distance; 2 / sqrt(n) is passed once in 1,500 times."""
    assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    share = (values.sort().values - low) / (high - low)
    steps = torch.arange(len(values), dtype=torch.float64) / len(values)
    assert (share - steps).abs().max() < 2 / len(values) ** 0.5


@pytest.mark.parametrize("sides", [(256, 256), (120, 400), (3, 5), (10, 300), (1, 1)])
def test_crops_are_those_of_random_resized_crop(sides: tuple[int, int]) -> None:
    """The same tries through torchvision's own loop, written in Python numbers."""
    height, width = sides
    spec, number = AugmentSpec(seed=3), 300
    keys = torch.arange(3 * number).reshape(number, 3)
    boxes = draws.draw(spec, keys, torch.tensor([sides]).expand(number, 2)).box
    for key, box in zip(keys, boxes.tolist(), strict=True):
        epoch, image, view = key
        words = [
            [int(word) for word in draws.philox4x32_10((torch.tensor(0x80000000 + b), view, image, epoch), (3, 0))]
            for b in range(9)
        ]
        for attempt in range(10):
            block = words[4 + attempt // 2][2 * (attempt % 2) :]
            area = height * width * (0.08 + (block[0] >> 8) / 2**24 * 0.92)
            log_ratio = math.log(3 / 4) + (block[1] >> 8) / 2**24 * (math.log(4 / 3) - math.log(3 / 4))
            w, h = (round(math.sqrt(area * math.exp(sign * log_ratio))) for sign in (1, -1))
            if 0 < w <= width and 0 < h <= height:
                top, left = words[3][0] * (height - h + 1) >> 32, words[3][1] * (width - w + 1) >> 32
                break
        else:
            w = round(height * 4 / 3) if width / height > 4 / 3 else width
            h = round(width / (3 / 4)) if width / height < 3 / 4 else height
            top, left = (height - h) // 2, (width - w) // 2
        assert box == [top, left, h, w]


def test_crop_areas_and_places_are_uniform() -> None:
    number, side = 20_000, 4000  # at this size rounding does not show, and of 1/2 .. 0.08 every ratio fits
    spec = AugmentSpec(scale=(0.08, 0.5))
    keys = torch.stack([torch.arange(number), torch.arange(number) * 5, torch.zeros(number, dtype=torch.int64)], dim=1)
    top, left, height, width = draws.draw(spec, keys, torch.full((number, 2), side)).box.double().unbind(1)
    assert_uniform(height * width / side**2, 0.0799, 0.5001)
    assert_uniform(torch.log(width / height), math.log(0.7495), math.log(1.3345))
    assert_uniform(top / (side - height), 0, 1)
    assert_uniform(left / (side - width), 0, 1)


def test_portable_exp_is_exp() -> None:
    x = torch.linspace(-12, 12, 10_001, dtype=torch.float64)
    torch.testing.assert_close(draws.portable_exp(x), x.exp(), rtol=1e-12, atol=0)


def test_params_survive_packing() -> None:
    keys = torch.arange(60).reshape(20, 3)
    params = draws.draw(AugmentSpec(downsample=0.5), keys, torch.full((20, 2), 300))
    again = AugmentParams.unpack(params.pack())
    for field in fields(AugmentParams):
        assert torch.equal(getattr(params, field.name), getattr(again, field.name)), field.name


@pytest.mark.parametrize("impl", IMPLS)
def test_is_seen_through_by_torch_library_and_compile(impl: str) -> None:
    spec, keys = AugmentSpec(image_size=16, seed=2**64 - 1, dtype=torch.bfloat16), torch.arange(6).reshape(2, 3)
    pictures = [picture(20, 30), picture(25, 11)]
    op = torch.ops.stablerep.strong_augment.default
    for images, channels_last in ((pictures, True), ([torch.stack(pictures[:1] * 2)], False)):
        torch.library.opcheck(op, (images, keys, spec.numbers(), -1, spec.dtype, channels_last, 0, impl))

    def normalised(images: list[Tensor] | Tensor, keys: Tensor) -> Tensor:
        return 2 * strong_augment(images, keys, spec, impl=impl, memory_format=torch.channels_last)  # type: ignore[arg-type]

    compiled = torch.compile(normalised, fullgraph=True, backend="aot_eager")
    for given_images in (pictures, torch.stack(pictures[:1] * 2)):
        assert torch.equal(compiled(given_images, keys), normalised(given_images, keys))


@pytest.mark.skipif(native.why_not("cuda") is not None or not torch.cuda.is_available(), reason="no CUDA GPU")
def test_cuda_is_the_cpu() -> None:
    pictures, keys = [picture(50, 80), picture(300, 7), picture(1, 1)] * 9, torch.arange(81).reshape(27, 3)
    spec, there = AugmentSpec(image_size=65, downsample=0.5), [p.cuda() for p in pictures]
    torch.cuda.set_sync_debug_mode("error")
    on_cuda = strong_augment(there, keys, spec, impl="native")
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(on_cuda.cpu(), strong_augment(pictures, keys, spec), rtol=0, atol=TOLERANCE / 0.2)


def test_empty_batch() -> None:
    keys = torch.zeros(0, 3, dtype=torch.int64)
    for images in ([], torch.zeros(0, 5, 6, 3, dtype=torch.uint8)):
        assert strong_augment(images, keys, AugmentSpec(image_size=7)).shape == (0, 3, 7, 7)


def test_bad_input() -> None:
    good, keys, spec = picture(8, 9), torch.zeros(2, 3, dtype=torch.int64), AugmentSpec(image_size=8)
    with pytest.raises(ValueError, match=r"strong_augment: images\[1\] must be \[H, W, 3\], got \[3, 8, 9\]"):
        strong_augment([good, good.permute(2, 0, 1)], keys, spec)
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\], got \[8, 9, 3\]"):
        strong_augment(good, keys, spec)
    with pytest.raises(TypeError, match=r"images\[0\] must be uint8, got torch.float32"):
        strong_augment([good.float(), good], keys, spec)
    for shape in ((0, 5, 3), (5, 0, 3)):
        with pytest.raises(
            ValueError, match=rf"images\[1\] must have sides of 1 to 65536 pixels, got {shape[0]}x{shape[1]}"
        ):
            strong_augment([good, torch.zeros(shape, dtype=torch.uint8)], keys, spec)
    with pytest.raises(ValueError, match="images must have sides"):
        strong_augment(torch.zeros(2, 0, 4, 3, dtype=torch.uint8), keys, spec)
    with pytest.raises(ValueError, match=r"images\[1\] lies on meta and images\[0\] on cpu"):
        strong_augment([good, good.to("meta")], keys, spec)
    with pytest.raises(ValueError, match=r"keys must be \[2, 3\] for 2 images, got \[3, 3\]"):
        strong_augment([good, good], torch.zeros(3, 3, dtype=torch.int64), spec)
    with pytest.raises(TypeError, match=r"keys must be int64, got torch.int32"):
        strong_augment([good, good], keys.int(), spec)
    with pytest.raises(ValueError, match="memory_format"):
        strong_augment([good, good], keys, spec, memory_format=torch.preserve_format)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        strong_augment([good, good], keys, spec, threads=0)
    with pytest.raises(ImplUnavailable, match="strong_augment: impl='fast' cannot run"):
        strong_augment([good, good], keys, spec, impl="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 0), ("scale", (0.0, 1.0)), ("scale", (0.9, 0.1)), ("scale", (0.5, 1.1)), ("ratio", (2.0, 1.0)),
        ("ratio", (0.0, 1.0)), ("flip", 1.1), ("jitter", -0.1), ("grey", math.nan), ("brightness", -1), ("hue", 0.6),
        ("blur_sigma", (0.0, 1.0)), ("blur_sigma", (1.0, 9.0)), ("downsample_sizes", (64,)),
        ("downsample_sizes", (0, 5)), ("std", (1.0, 0.0, 1.0)), ("mean", (math.nan, 0.0, 0.0)),
        ("dtype", torch.float64), ("seed", -1), ("seed", 2**64),
    ],
)  # fmt: skip
def test_a_spec_cannot_be_built_wrong(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"AugmentSpec: {name} must be"):
        AugmentSpec(**{name: value})  # type: ignore[arg-type]


def test_a_spec_crosses_into_native_code_whole() -> None:
    spec = AugmentSpec(
        image_size=9, scale=(0.1, 0.2), ratio=(0.3, 0.4), flip=0.11, jitter=0.12, brightness=0.13, contrast=0.14,
        saturation=0.15, hue=0.16, grey=0.17, blur=0.18, blur_sigma=(0.19, 0.21), downsample=0.22,
        downsample_sizes=(23, 24), mean=(0.25, 0.26, 0.27), std=(0.28, 0.29, 0.31), dtype=torch.float16, seed=32,
    )  # fmt: skip
    assert AugmentSpec.from_numbers(spec.numbers(), torch.float16, 32) == spec
