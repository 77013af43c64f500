"""The guided step against its reference in float64, in every dtype, layout and kind of row, and on bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stablerep import native
from stablerep.ops import ImplUnavailable, guided_step
from stablerep.ops.guided_step import reference

NATIVE_MISSING = native.why_not("cpu")
needs_native = pytest.mark.skipif(NATIVE_MISSING is not None, reason=NATIVE_MISSING or "")
IMPLS = [pytest.param("native", marks=needs_native), "reference"]
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]
# Rows as they occur: DDIM late (a and b large), DPM-Solver++ with and without the step before, its last, sample.
TABLE = torch.tensor(
    [
        [14.6, -14.57, 0.97, 0.03, 0.0],
        [2.1, -1.85, 0.91, 0.14, -0.05],
        [0.98, -0.2, 0.85, 0.9, -0.75],
        [0.9, -0.43, 0.0, 1.0, 0.0],
        [0.0, 1.0, 0.7, 0.3, 0.0],
    ]
)


def draw(shape: tuple[int, ...], guided: bool, dtypes: tuple[torch.dtype, torch.dtype], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    twice = (shape[0] * (2 if guided else 1), *shape[1:])
    latents, x0 = torch.randn((2, *shape), generator=generator).to(dtypes[0])
    return [latents, torch.randn(twice, generator=generator).to(dtypes[1]), x0]


def errors(results: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    return [float((one.double() - other).abs().max()) for one, other in zip(results, exact, strict=True)]


def exactly(tensors: list[Tensor], *rest: Tensor) -> tuple[Tensor, Tensor]:
    return reference(*(tensor.double() for tensor in tensors), *rest)


@needs_native
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(str(d).removeprefix("torch.") for d in pair))
@pytest.mark.parametrize("guided", [True, False])
def test_error_is_that_of_the_dtype(dtypes: tuple[torch.dtype, torch.dtype], guided: bool) -> None:
    for seed, shape in enumerate([(1, 1), (1, 63), (3, 127), (2, 1000), (2, 4, 33, 31), (5, 4, 8, 8)]):
        tensors = draw(shape, guided, dtypes, seed)
        for scale in (torch.tensor(2.0), torch.linspace(0, 7.5, shape[0])):
            for step in torch.arange(len(TABLE)):
                results = guided_step(*tensors, TABLE, step, scale, impl="native")
                assert [result.dtype for result in results] == [dtypes[0]] * 2
                exact = exactly(tensors, TABLE, step, scale)
                granted = errors(guided_step(*tensors, TABLE, step, scale, impl="reference"), exact)
                for error, reference_error in zip(errors(results, exact), granted, strict=True):
                    assert error <= 2 * reference_error + 1e-6


@needs_native
@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(0, 5),
    size=st.integers(0, 2100),
    guided=st.booleans(),
    per_picture=st.booleans(),
    step=st.integers(-1, len(TABLE)),
    dtypes=st.sampled_from(DTYPES),
)
def test_native_is_the_reference(
    batch: int, size: int, guided: bool, per_picture: bool, step: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    tensors = draw((batch, size), guided, dtypes, seed=size)
    scale = torch.linspace(-1, 3, batch) if per_picture else torch.tensor(0.3)
    results = [guided_step(*tensors, TABLE, torch.tensor(step), scale, impl=impl) for impl in ("native", "reference")]
    # One rounding of the dtype apart at most: torch's lerp fuses a multiply-add where the processor has one.
    tolerance = {"rtol": 2 * torch.finfo(dtypes[0]).eps, "atol": 1e-5}
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance, equal_nan=True)
        assert ours.isnan().all() == (not 0 <= step < len(TABLE) or ours.numel() == 0)


@needs_native
def test_many_threads_many_pictures() -> None:
    tensors = draw((9, 4, 63, 65), True, (torch.float32, torch.float16))
    alone = guided_step(*tensors, TABLE, torch.tensor(1), torch.arange(9.0), impl="native")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = guided_step(*tensors, TABLE, torch.tensor(1), torch.arange(9.0), impl="native")
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_the_unets_layout_is_kept(impl: str) -> None:
    latents, output, x0 = draw((3, 4, 5, 7), True, (torch.float32, torch.float32))
    scale, step = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2)
    expected = guided_step(latents, output, x0, TABLE, step, scale, impl=impl)
    for changed in (output.contiguous(memory_format=torch.channels_last), output.repeat_interleave(2, 3)[..., ::2]):
        results = guided_step(latents, changed, x0, TABLE, step, scale, impl=impl)
        for result, other in zip(results, expected, strict=True):
            assert torch.equal(result, other)
            is_last = changed.is_contiguous(memory_format=torch.channels_last)
            assert result.is_contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


@pytest.mark.parametrize("impl", IMPLS)
def test_guidance_of_one_is_the_text_alone_and_of_zero_none(impl: str) -> None:
    latents, output, x0 = draw((2, 40), True, (torch.float32, torch.float32))
    for scale, half in ((1.0, output[2:]), (0.0, output[:2])):
        guided = guided_step(latents, output, x0, TABLE, torch.tensor(1), torch.tensor(scale), impl=impl)
        plain = guided_step(latents, half, x0, TABLE, torch.tensor(1), torch.tensor(torch.nan), impl=impl)
        assert all(torch.equal(one, other) for one, other in zip(guided, plain, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_stay_where_they_are(impl: str, dtype: torch.dtype) -> None:
    latents, output, x0 = draw((2, 64), False, (dtype, dtype))
    latents[0, 3], output[0, 5], x0[1, 7], output[1, 9], output[1, 10] = torch.nan, torch.inf, torch.nan, 6e4, -6e4
    for step in (1, 3):  # with and without the x0 before
        result, new_x0 = guided_step(latents, output, x0, TABLE, torch.tensor(step), torch.ones(()), impl=impl)
        bad = ~result.isfinite()
        assert bad[0].nonzero().flatten().tolist() == [3, 5]
        assert bad[1].nonzero().flatten().tolist() == ([7] if step == 1 else [])
        assert new_x0[0, 5] == -torch.inf
        if step == 1:  # 1.85 times 60,000 is more than float16 holds
            assert new_x0[1, 9:11].isinf().all() == (dtype == torch.float16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@needs_native
def test_every_half_number_is_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[None]
    pass_on = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]])  # x0 = output
    zero, step, scale = torch.zeros_like(every, dtype=torch.float32), torch.tensor(0), torch.ones(())
    _, as_float = guided_step(zero, every, zero, pass_on, step, scale, impl="native")
    torch.testing.assert_close(as_float, every.float(), rtol=0, atol=0, equal_nan=True)
    between = torch.tensor([[1.0, 2.0**-12, 0.0, 1.0, 0.0]])  # sums that lie between two halves, or in their middle
    ours, theirs = (
        guided_step(every, every.flip(1), every, between, step, scale, impl=impl) for impl in ("native", "reference")
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("impl", IMPLS)
def test_torch_library_knows_it(impl: str) -> None:
    operator = torch.ops.stablerep.guided_step.default
    for guided, dtypes in ((True, DTYPES[0]), (False, DTYPES[1]), (True, DTYPES[3])):
        tensors = draw((2, 4, 3, 5), guided, dtypes)
        tensors[1] = tensors[1].contiguous(memory_format=torch.channels_last)
        torch.library.opcheck(operator, (*tensors, TABLE, torch.tensor(1), torch.ones(2), impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_compiles_into_one_graph(impl: str) -> None:
    def twice(latents: Tensor, output: Tensor, x0: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        latents, x0 = guided_step(latents, output, x0, TABLE, step, torch.ones(()), impl=impl)  # type: ignore[arg-type]
        return guided_step(latents, output, x0, TABLE, step + 1, torch.ones(()), impl=impl)  # type: ignore[arg-type]

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    for shape in ((2, 4, 3, 5), (3, 4, 3, 5)):  # the second time with a symbolic batch
        tensors = draw(shape, True, DTYPES[0])
        for one, other in zip(compiled(*tensors, torch.tensor(1)), twice(*tensors, torch.tensor(1)), strict=True):
            assert torch.equal(one, other)


def test_is_not_differentiable_and_says_so() -> None:
    latents, output, x0 = draw((2, 8), True, DTYPES[0])
    result, _ = guided_step(latents.requires_grad_(), output, x0, TABLE, torch.tensor(0), torch.ones(()))
    with pytest.raises(NotImplementedError, match="guided_step is not differentiable"):
        result.sum().backward()


def test_bad_input() -> None:
    x, output, x0 = draw((2, 8), True, DTYPES[0])
    step, scale = torch.tensor(0), torch.ones(())
    for error, message, call in [
        (TypeError, "latents must be float32", (x.double(), output, x0, TABLE, step, scale)),
        (TypeError, "previous_x0 the same", (x, output, x0.half(), TABLE, step, scale)),
        (TypeError, "output must be torch.float16", (x.half(), output, x0.half(), TABLE, step, scale)),
        (TypeError, "output must be torch.float32", (x, output.double(), x0, TABLE, step, scale)),
        (TypeError, "table and guidance_scale", (x, output, x0, TABLE.double(), step, scale)),
        (TypeError, "step int64", (x, output, x0, TABLE, step.int(), scale)),
        (ValueError, r"must be \[B, ...\]", (x, output, x0[:1], TABLE, step, scale)),
        (ValueError, r"output must be .* got \[3, 8\]", (x, output[:3], x0, TABLE, step, scale)),
        (ValueError, r"output must be .* got \[4, 7\]", (x, output[:, 1:], x0, TABLE, step, scale)),
        (ValueError, r"table must be \[S, 5\]", (x, output, x0, TABLE[:, :4], step, scale)),
        (ValueError, r"table must be \[S, 5\]", (x, output, x0, TABLE[:0], step, scale)),
        (ValueError, r"step \[\]", (x, output, x0, TABLE, step[None], scale)),
        (ValueError, r"guidance_scale must be \[\] or \[2\]", (x, output, x0, TABLE, step, torch.ones(3))),
        (ValueError, "all inputs must lie on cpu", (x, output, x0, TABLE.to("meta"), step, scale)),
    ]:
        with pytest.raises(error, match=f"guided_step: .*{message}"):
            guided_step(*call)
    with pytest.raises(ImplUnavailable, match="guided_step: impl='fast' cannot run"):
        guided_step(x, output, x0, TABLE, step, scale, impl="fast")  # type: ignore[arg-type]
