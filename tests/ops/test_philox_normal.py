"""Philox noise against published vectors, an independent numpy version, statistics, and itself in other batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stablerep import native
from stablerep.ops import ImplUnavailable, philox_normal
from stablerep.ops.philox_normal import philox4x32_10

NATIVE_MISSING = native.why_not("cpu")
IMPLS = [
    pytest.param("native", marks=pytest.mark.skipif(NATIVE_MISSING is not None, reason=NATIVE_MISSING or "")),
    "reference",
]
UINT64 = st.integers(0, 2**64 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)


def test_known_answers() -> None:
    """kat_vectors of Random123 1.14, philox4x32 10."""
    for counter, key, expected in [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]:
        words = tuple(torch.tensor(int(word, 16)) for word in counter.split())
        k0, k1 = (int(word, 16) for word in key.split())
        answer = philox4x32_10(words, (k0, k1))
        assert " ".join(f"{int(word):08x}" for word in answer) == expected
        assert [int(word) for word in numpy_words(words, (k0, k1))] == [int(word) for word in answer]


def numpy_words(counter: tuple[object, ...], key: tuple[int, int]) -> list[NDArray[np.uint64]]:
    """Philox4x32-10 once more, in unsigned arithmetic."""
    c = [np.asarray(word, np.uint64) for word in counter]
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for round_ in range(10):
        k = [np.uint64(key[i] + round_ * (0x9E3779B9, 0xBB67AE85)[i] & 0xFFFFFFFF) for i in (0, 1)]
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> shift) ^ c[1] ^ k[0], b & mask, (a >> shift) ^ c[3] ^ k[1], a & mask]
    return c


def numpy_normal(seed: int, prompt_id: int, index: int, size: int) -> NDArray[np.float64]:
    blocks = np.arange((size + 3) // 4)
    prompt = prompt_id % 2**64
    counter = (blocks, index % 2**32, prompt % 2**32, prompt >> 32)
    w0, w1, w2, w3 = numpy_words(counter, (seed % 2**32, seed >> 32))
    columns = []
    for w, v in ((w0, w1), (w2, w3)):
        radius = np.sqrt(-2 * np.log(((w >> np.uint64(8)) + np.uint64(1)) / 2**24))
        angle = 2 * math.pi * ((v >> np.uint64(8)) / 2**24)
        columns += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(np.broadcast_arrays(*columns), axis=-1).reshape(-1)[:size]


@pytest.mark.parametrize("impl", IMPLS)
@settings(deadline=None, max_examples=60)
@given(seed=UINT64, prompt_id=INT64, index=INT64, size=st.integers(0, 130))
def test_is_the_contract(impl: str, seed: int, prompt_id: int, index: int, size: int) -> None:
    noise = philox_normal(seed, torch.tensor([prompt_id]), torch.tensor([index]), (size,), impl=impl)
    assert noise.dtype == torch.float32
    np.testing.assert_allclose(noise[0].numpy(), numpy_normal(seed, prompt_id, index, size), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(), (1,), (63,), (4, 0, 3), (127,), (1000,), (4, 33, 31), (5000,)])
def test_batch_and_shape_do_not_matter(impl: str, shape: tuple[int, ...]) -> None:
    prompt_ids, indices = torch.tensor([5, 2**40 + 5, -1, 5]), torch.tensor([0, 0, 3, 1])
    together = philox_normal(9, prompt_ids, indices, shape, impl=impl)
    assert together.shape == (4, *shape)
    assert together.isfinite().all()
    for row in range(4):
        alone = philox_normal(9, prompt_ids[row : row + 1], indices[row : row + 1], shape, impl=impl)
        assert torch.equal(alone[0], together[row])
    longer = philox_normal(9, prompt_ids, indices, (math.prod(shape) + 7,), impl=impl)
    assert torch.equal(longer[:, : math.prod(shape)], together.flatten(1) if shape else together[:, None])
    assert philox_normal(9, prompt_ids[:0], indices[:0], shape, impl=impl).shape == (0, *shape)
    every_other = philox_normal(9, prompt_ids.repeat_interleave(2)[::2], indices, shape, impl=impl)
    assert torch.equal(every_other, together)


@pytest.mark.parametrize("impl", IMPLS)
def test_is_normal_and_independent(impl: str) -> None:
    ids = torch.arange(64)
    x = philox_normal(1, ids // 4, ids % 4, (4096,), impl=impl).double()  # 262,144 numbers
    deviations = x.numel() ** -0.5
    assert abs(x.mean()) < 4 * deviations
    assert abs(x.var() - 1) < 4 * deviations * 2**0.5
    assert abs((x**4).mean() - 3) < 4 * deviations * 96**0.5
    edges = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    for edge in edges:
        share = torch.special.ndtr(edge)
        assert abs((x < edge).double().mean() - share) < 4 * deviations * (share * (1 - share)) ** 0.5
    correlation = (x @ x.T / 4096).fill_diagonal_(0)  # between images: other prompt, other index
    assert correlation.abs().max() < 6 / 4096**0.5
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 4 * deviations
    assert not torch.equal(x[:1], philox_normal(2, ids[:1], ids[:1], (4096,), impl=impl).double())


@pytest.mark.skipif(NATIVE_MISSING is not None, reason=NATIVE_MISSING or "")
def test_native_is_the_reference() -> None:
    ids = torch.arange(40)
    native_noise = philox_normal(3, ids, ids * 7, (4, 64, 65), impl="native")  # several chunks and threads
    torch.testing.assert_close(
        native_noise, philox_normal(3, ids, ids * 7, (4, 64, 65), impl="reference"), rtol=1e-6, atol=1e-6
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(native_noise, philox_normal(3, ids, ids * 7, (4, 64, 65), impl="native"))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("impl", IMPLS)
def test_torch_library_knows_it(impl: str) -> None:
    operator = torch.ops.stablerep.philox_normal.default
    ids = torch.arange(3)
    for seed in (7, -1):  # -1 is 2^64 - 1 with a sign
        torch.library.opcheck(operator, (seed, ids, ids * 2, [4, 5], impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_compiles_into_one_graph(impl: str) -> None:
    def shifted(seed: int, ids: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return philox_normal(seed, ids, ids * 7, shape, impl=impl) + 1  # type: ignore[arg-type]

    compiled = torch.compile(shifted, fullgraph=True, backend="aot_eager")
    for seed, batch, shape in ((0, 2, (4, 3)), (2**63 - 1, 3, (4, 5)), (2**63, 3, (4, 5)), (2**64 - 1, 5, (7,))):
        ids = torch.arange(batch)
        assert torch.equal(compiled(seed, ids, shape), shifted(seed, ids, shape))


def test_bad_input() -> None:
    ids = torch.arange(3)
    with pytest.raises(ValueError, match=r"\[B\]"):
        philox_normal(0, ids, ids[:2], (4,))
    with pytest.raises(ValueError, match=r"\[B\]"):
        philox_normal(0, ids[None], ids[None], (4,))
    with pytest.raises(TypeError, match="int64"):
        philox_normal(0, ids.int(), ids, (4,))
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            philox_normal(seed, ids, ids, (4,))
    with pytest.raises(ValueError, match="shape"):
        philox_normal(0, ids, ids, (4, -1))
    with pytest.raises(ImplUnavailable, match="impl='fast' cannot run: there is no such implementation; have"):
        philox_normal(0, ids, ids, (4,), impl="fast")  # type: ignore[arg-type]


def test_a_named_implementation_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, "no compiler was found"))
    ids = torch.arange(3)
    with pytest.raises(ImplUnavailable, match=r"impl='native' cannot run: no compiler was found; have \['reference'\]"):
        philox_normal(0, ids, ids, (4,), impl="native")
    with pytest.raises(ImportError, match="no compiler was found"):
        native.module()
    assert native.build_info() is None
