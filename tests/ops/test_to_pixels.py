"""Pixels against the reference, at odd sizes, in every dtype and layout, straight into a pool, and on bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stablerep import native
from stablerep.ops import ImplUnavailable, to_pixels
from stablerep.ops.to_pixels import geometry, reference

NATIVE_MISSING = native.why_not("cpu")
needs_native = pytest.mark.skipif(NATIVE_MISSING is not None, reason=NATIVE_MISSING or "")
IMPLS = [pytest.param("native", marks=needs_native), "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(batch: int, height: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, 3, height, width, generator=generator) * 0.7).to(dtype)


def assert_same_levels(ours: Tensor, images: Tensor, image_size: int | None) -> None:
    """Equal, but where the exact value lies so near to the middle of two levels that a float's last bits decide."""
    expected = reference(images, image_size)
    assert ours.shape == expected.shape
    different = ours != expected
    assert (ours.int() - expected.int()).abs().max() <= 1 if ours.numel() else True
    assert different.sum() <= max(2, 1e-3 * ours.numel())
    height, width, top, left = geometry(*images.shape[-2:], image_size)
    exact = images.double().contiguous(memory_format=torch.channels_last)
    if exact.shape[-2:] != (height, width):
        exact = torch.nn.functional.interpolate(exact, size=(height, width), mode="bilinear", antialias=True)
    levels = (exact + 1)[..., top : top + ours.shape[1], left : left + ours.shape[2]].permute(0, 2, 3, 1) * 127.5
    from_middle = (levels - levels.floor() - 0.5).abs()
    # A window's place is a float32 number as large as the picture, in torch as here.
    assert (from_middle[different] < 1e-5 * max(images.shape)).all()


@needs_native
@settings(deadline=None, max_examples=150)
@given(
    batch=st.integers(0, 3),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    image_size=st.none() | st.integers(1, 90),
    dtype=st.sampled_from(DTYPES),
    channels_last=st.booleans(),
)
def test_native_is_the_reference(
    batch: int, height: int, width: int, image_size: int | None, dtype: torch.dtype, channels_last: bool
) -> None:
    if image_size is not None and min(height, width) > 64 * image_size:
        return
    images = draw(batch, height, width, dtype, seed=height)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    assert_same_levels(to_pixels(images, image_size, impl="native"), images, image_size)


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(512, 512, 256), (127, 1000, 63), (1000, 127, 63), (300, 301, 300), (128, 190, 2)])
def test_large_pictures_on_several_threads(size: tuple[int, int, int], channels_last: bool) -> None:
    images = draw(2, *size[:2])
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ours = to_pixels(images, size[2], impl="native")
    finally:
        torch.set_num_threads(threads)
    assert_same_levels(ours, images, size[2])


@pytest.mark.parametrize("impl", IMPLS)
def test_rounding_and_clamping(impl: str) -> None:
    """Halves go to the even level, as torch.round has it; what is outside -1..1 stays at the ends."""
    levels = torch.arange(-3, 260, 0.5)
    images = (levels / 127.5 - 1).expand(1, 3, 1, -1)
    back = (images[0, 0, 0] + 1) * 127.5
    expected = back.round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(to_pixels(images, impl=impl)[0, 0], expected[:, None].expand(-1, 3))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity(impl: str, dtype: torch.dtype) -> None:
    images = torch.full((1, 3, 24, 24), 0.5, dtype=dtype)
    images[0, 0, 10, 12], images[0, 1, 3, 4], images[0, 2, 20, 7] = torch.nan, torch.inf, -torch.inf
    whole = to_pixels(images, impl=impl)
    assert (whole[0, 10, 12, 0], whole[0, 3, 4, 1], whole[0, 20, 7, 2]) == (0, 255, 0)
    assert (whole == 191).sum() == whole.numel() - 3
    half = to_pixels(images, 12, impl=impl)
    assert (half[0, ..., 0] == 0).nonzero().tolist() == [[y, x] for y in (4, 5) for x in (5, 6)]
    assert (half[0, ..., 1] == 255).sum() == 4
    assert (half[0, ..., 2] == 0).sum() == 4
    odd = to_pixels(images, 17, impl=impl)  # windows of different widths
    assert torch.equal(odd, to_pixels(images, 17, impl="reference"))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("image_size", [None, 8, 20])
def test_straight_into_a_pool(impl: str, image_size: int | None) -> None:
    images = draw(6, 20, 20)
    expected = to_pixels(images, image_size, impl=impl)
    pool = torch.full((5, *expected.shape[1:]), 77, dtype=torch.uint8)
    slots = torch.tensor([4, 1, -1, 5, 4, 2**40])  # of two pictures for slot 4 the last counts
    assert to_pixels(images, image_size, pool, slots, impl=impl) is pool
    assert torch.equal(pool[4], expected[4])
    assert torch.equal(pool[1], expected[1])
    assert (pool[[0, 2, 3]] == 77).all()
    before = pool.clone()
    to_pixels(images[:0], image_size, pool, slots[:0], impl=impl)
    to_pixels(images, image_size, pool[:0], slots, impl=impl)
    assert torch.equal(pool, before)


@needs_native
def test_a_pool_and_its_slots_at_odd_places() -> None:
    """Views: a pool that starts within another, every other slot of a list, pictures that are neither layout."""
    store = torch.zeros(9, 7, 7, 3, dtype=torch.uint8)
    images = draw(3, 9, 14)[..., ::2]
    to_pixels(images, 7, store[2:6], torch.tensor([0, 9, 3, 9, 1])[::2], impl="native")
    expected = reference(images, 7)
    assert torch.equal(store[[2, 5, 3]], expected)
    assert not store[[0, 1, 4, 6, 7, 8]].any()


@pytest.mark.parametrize("impl", IMPLS)
def test_torch_library_knows_it(impl: str) -> None:
    pool, slots = torch.zeros(4, 5, 5, 3, dtype=torch.uint8), torch.tensor([3, 1])
    for images in (draw(2, 8, 10), draw(2, 8, 10).half().contiguous(memory_format=torch.channels_last)):
        for image_size in (None, 5):
            torch.library.opcheck(torch.ops.stablerep.to_pixels.default, (images, image_size, impl))
        torch.library.opcheck(torch.ops.stablerep.to_pixels_into.default, (images, 5, pool, slots, impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_compiles_into_one_graph(impl: str) -> None:
    def paint(images: Tensor, pool: Tensor, slots: Tensor) -> Tensor:
        to_pixels(images * 0.5, 6, pool, slots, impl=impl)  # type: ignore[arg-type]
        return to_pixels(images * 0.5, impl=impl).float().mean() + pool.float().mean()  # type: ignore[arg-type]

    compiled = torch.compile(paint, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        pools = torch.zeros(2, 5, 6, 6, 3, dtype=torch.uint8)
        images, slots = draw(batch, 9, 11), torch.tensor([3, 0, 1])[:batch]
        assert compiled(images, pools[0], slots) == paint(images, pools[1], slots)
        assert torch.equal(pools[0], pools[1])
        assert pools[0].any()


def test_bad_input() -> None:
    images, pool, slots = draw(2, 8, 10), torch.zeros(4, 5, 5, 3, dtype=torch.uint8), torch.tensor([3, 1])
    for error, message, call in [
        (TypeError, "images must be float32", (images.double(),)),
        (ValueError, r"images must be \[B, 3, H, W\], got \[3, 8, 10\]", (images[0],)),
        (ValueError, r"images must be .* got \[2, 2, 8, 10\]", (images[:, :2],)),
        (ValueError, r"images must be .* got \[2, 3, 0, 10\]", (images[:, :, :0],)),
        (ValueError, "image_size must be at least 1/64 of 8, got 0", (images, 0)),
        (ValueError, "image_size must be at least 1/64 of 65, got 1", (draw(1, 65, 80), 1)),
        (ValueError, "out and slots belong together", (images, 5, pool)),
        (ValueError, "out and slots belong together", (images, 5, None, slots)),
        (TypeError, "out must be uint8", (images, 5, pool.float(), slots)),
        (TypeError, "slots int64", (images, 5, pool, slots.int())),
        (ValueError, r"out must be \[P, 6, 6, 3\]", (images, 6, pool, slots)),
        (ValueError, r"out must be \[P, 8, 10, 3\]", (images, None, pool, slots)),
        (ValueError, "contiguous", (images, 5, pool.transpose(1, 2), slots)),
        (ValueError, r"slots must be \[2\], got \[1\]", (images, 5, pool, slots[:1])),
        (ValueError, "out and slots must lie on cpu", (images, 5, pool, slots.to("meta"))),
    ]:
        with pytest.raises(error, match=f"to_pixels: .*{message}"):
            to_pixels(*call)
    with pytest.raises(ImplUnavailable, match="to_pixels: impl='fast' cannot run"):
        to_pixels(images, impl="fast")  # type: ignore[arg-type]
