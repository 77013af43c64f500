"""What `make gpu-check` asks of the ops: CUDA gives what the CPU gives, and nobody waits for the device."""

from __future__ import annotations

import torch

from benchmarks.checks import SEED, Numbers, Skip
from stablerep import native


def native_half() -> Numbers:
    """The CUDA half of the extension is built and runs."""
    if reason := native.why_not("cuda"):
        raise Skip(reason)
    noise_on("cuda", "native", (4, 8, 8))
    torch.cuda.synchronize()
    return dict(native.build_info() or {})


def noise_on(device: str, impl: str, shape: tuple[int, ...]) -> torch.Tensor:
    from stablerep.ops import philox_normal

    ids = torch.arange(48, device=device)
    return philox_normal(SEED, ids * 10**10, ids % 6, shape, impl=impl).cpu()  # type: ignore[arg-type]


def philox_normal() -> Numbers:
    """Noise on CUDA is the noise of the CPU, in each implementation and at odd sizes."""
    worst, same_bits = 0.0, True
    for shape in [(1,), (63,), (127,), (1000,), (4, 64, 64)]:
        expected = noise_on("cpu", "reference", shape)
        for impl in ("reference", "native"):
            if impl == "native" and native.why_not("cuda"):
                continue
            actual = noise_on("cuda", impl, shape)
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
            worst = max(worst, float((actual - expected).abs().max()))
            if impl == "native" and native.why_not("cpu") is None:
                same_bits &= torch.equal(actual, noise_on("cpu", impl, shape))
    return {"worst_error": worst, "native_has_the_bits_of_the_cpu": same_bits, "native": native.why_not("cuda") is None}


def guided_step() -> Numbers:
    """A guided step on CUDA has the digits of the CPU's, in every dtype, aligned or not, with and without guidance."""
    from stablerep.ops import guided_step

    generator = torch.Generator().manual_seed(SEED)
    table = torch.tensor([[2.1, -1.85, 0.91, 0.14, -0.05], [14.6, -14.57, 0.97, 0.03, 0.0]])
    halves = ((torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16))
    same_bits, worst = True, 0.0
    for latents_dtype, output_dtype in (*halves, (torch.float32, torch.float32), (torch.float32, torch.bfloat16)):
        for shape in [(1, 1), (3, 63), (2, 127), (3, 1000), (16, 4, 64, 64)]:
            for halves_of_output in (1, 2):
                latents, x0 = torch.randn((2, *shape), generator=generator).to(latents_dtype)
                output = torch.randn((halves_of_output * shape[0], *shape[1:]), generator=generator).to(output_dtype)
                for step, scale in ((0, torch.tensor(2.0)), (1, torch.linspace(0, 7.5, shape[0]))):
                    inputs = (latents, output, x0, table, torch.tensor(step), scale)
                    actual = guided_step(*(tensor.cuda() for tensor in inputs))
                    for one, other in zip(actual, guided_step(*inputs), strict=True):
                        difference = (one.cpu().double() - other.double()).abs().max()
                        assert difference <= 4 * torch.finfo(latents_dtype).eps * other.abs().max().double()
                        worst, same_bits = max(worst, float(difference)), same_bits and not difference
    return {"worst_error": worst, "native_has_the_bits_of_the_cpu": same_bits, "native": native.why_not("cuda") is None}


def to_pixels() -> Numbers:
    """Pixels on CUDA are those of the CPU to a grey level, in every dtype and layout, and in a pool."""
    from stablerep.ops import to_pixels

    generator = torch.Generator().manual_seed(SEED)
    different = total = 0
    for height, width, size in [
        (1, 1, None),
        (63, 127, None),
        (63, 127, 40),
        (40, 33, 70),
        (512, 512, 256),
        (1000, 64, 1),
    ]:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for layout in (torch.contiguous_format, torch.channels_last):
                images = torch.randn((3, 3, height, width), generator=generator).to(dtype)
                images = images.contiguous(memory_format=layout)
                expected = to_pixels(images, size)
                actual = to_pixels(images.cuda(), size)
                pool = torch.full((4, *expected.shape[1:]), 77, dtype=torch.uint8, device="cuda")
                to_pixels(images.cuda(), size, pool, torch.tensor([2, -1, 2], device="cuda"))
                assert torch.equal(pool[2], actual[2]) and (pool[[0, 1, 3]] == 77).all()
                difference = (actual.cpu().int() - expected.int()).abs()
                assert difference.max() <= 1
                different, total = different + int(difference.sum()), total + difference.numel()
    assert different <= 1e-4 * total
    return {"share_of_different_levels": different / total, "native": native.why_not("cuda") is None}


def multi_positive_loss() -> Numbers:
    """The loss and its gradient on CUDA against float64 on the CPU, in float32 and bfloat16."""
    from stablerep.ops import multi_positive_loss

    def loss_and_gradient(features: torch.Tensor, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = features.to(device, copy=True).requires_grad_()
        loss = multi_positive_loss(leaf, labels.to(device))
        loss.backward()
        assert leaf.grad is not None
        return loss.detach().cpu().double(), leaf.grad.cpu().double()

    generator = torch.Generator().manual_seed(SEED)
    numbers: Numbers = {}
    for rows in (1, 63, 127, 1000, 2048):
        labels = torch.randint(0, max(1, rows // 5), (rows,), generator=generator)
        features = torch.randn(rows, 256, generator=generator)
        for dtype in (torch.float32, torch.bfloat16):
            rounded = features.to(dtype)
            exact_loss, exact = loss_and_gradient(rounded.double(), "cpu")
            loss, gradient = loss_and_gradient(rounded, "cuda")
            torch.testing.assert_close(loss, exact_loss, rtol=1e-5, atol=1e-5)
            error = float((gradient - exact).norm() / exact.norm().clamp(min=1e-30)) if exact.any() else 0.0
            assert error < 4 * torch.finfo(dtype).eps + 1e-5, f"gradient off by {error:.1e} at {rows} rows, {dtype}"
            numbers[f"gradient_error_{rows}_{str(dtype).removeprefix('torch.')}"] = error
    return numbers


def image_text_loss() -> Numbers:
    """The image-text loss, its gradients and that of the scale on CUDA against float64 on the CPU."""
    from stablerep.ops import image_text_loss

    generator = torch.Generator().manual_seed(SEED)
    labels = torch.randint(0, 200, (1000,), generator=generator)
    numbers: Numbers = {}
    for dim in (256, 512):
        features, scale = torch.randn(2, 1000, dim, generator=generator), torch.tensor(14.3)
        for dtype in (torch.float32, torch.bfloat16):
            rounded = features.to(dtype)

            def results(features: torch.Tensor, device: str, scale: torch.Tensor = scale) -> list[torch.Tensor]:
                leaves = [each.to(device, copy=True).requires_grad_() for each in (*features, scale)]
                loss = image_text_loss(leaves[0], leaves[1], labels.to(device), leaves[2])
                return [value.cpu().double() for value in (loss.detach(), *torch.autograd.grad(loss, leaves))]

            error = max(
                float((actual - exact).norm() / exact.norm())
                for actual, exact in zip(results(rounded, "cuda"), results(rounded.double(), "cpu"), strict=True)
            )
            assert error < 4 * torch.finfo(dtype).eps + 1e-5, f"off by {error:.1e} with {dim} features, {dtype}"
            numbers[f"worst_error_{dim}_{str(dtype).removeprefix('torch.')}"] = error
    return numbers


def strong_augment() -> Numbers:
    """Augmented pictures on CUDA are those of the CPU to a grey level, stacked or ragged, in both layouts."""
    from stablerep.ops import AugmentSpec, strong_augment

    generator = torch.Generator().manual_seed(SEED)
    spec = AugmentSpec(image_size=96, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), downsample=0.3, seed=SEED)
    sizes = [(256, 256), (1, 1), (63, 400), (512, 300), (97, 96)] * 8
    ragged = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator) for size in sizes]
    worst = 0.0
    for images in (ragged, torch.stack([ragged[0]] * 40)):
        keys = torch.stack([torch.full((40,), 3), torch.arange(40), torch.arange(40) % 6], dim=1)
        on_device = [image.cuda() for image in images] if isinstance(images, list) else images.cuda()
        expected = strong_augment(images, keys, spec)
        for layout in (torch.contiguous_format, torch.channels_last):
            actual = strong_augment(on_device, keys.cuda(), spec, memory_format=layout).cpu()
            worst = max(worst, float((actual - expected).abs().max()))
    assert worst < 1 / 255, f"pictures differ by {worst:.1e} of the range of colours"
    return {"worst_error": worst, "native": native.why_not("cuda") is None}


def no_waiting() -> Numbers:
    """No op waits for the device."""
    from stablerep.ops import AugmentSpec, guided_step, image_text_loss, multi_positive_loss, philox_normal, to_pixels
    from stablerep.ops import strong_augment as augment

    labels = torch.arange(96, device="cuda") // 6
    pictures, keys = torch.zeros(96, 8, 8, 3, dtype=torch.uint8, device="cuda"), torch.stack([labels] * 3, dim=1)
    features = torch.randn(96, 64, device="cuda", requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        multi_positive_loss(features, labels).backward()
        image_text_loss(features, features, labels, labels[0] + 10.0).backward()
        augment(pictures, keys, AugmentSpec(image_size=8))
        philox_normal(SEED, labels, labels, (4, 8, 8))
        latents, zero = torch.randn(96, 4, 8, 8, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
        guided_step(latents, latents, latents, torch.ones(1, 5, device="cuda"), zero, zero.float())
        to_pixels(latents[:, :3], 4, torch.zeros(96, 4, 4, 3, dtype=torch.uint8, device="cuda"), labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {}
