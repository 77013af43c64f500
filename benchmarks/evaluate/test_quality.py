"""The measures of stablerep-quality against prdc, torch-fidelity and vendi-score, and 50,000 x 50,000 in blocks."""

from __future__ import annotations

import contextlib
import io

import prdc
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from vendi_score import vendi

from benchmarks.record import Bench, Case, Work
from stablerep.evaluate.quality.diversity import vendi_score
from stablerep.evaluate.quality.domain_gap import domain_gap
from stablerep.evaluate.quality.frechet import frechet_distance, kernel_distance
from stablerep.evaluate.quality.manifold import Manifold, manifold
from stablerep.evaluate.quality.memorisation import find_memorised

NAMES = ("precision", "recall", "density", "coverage")
MOST_MIB = 2000  # of 50,000 x 50,000
KID = {
    "kid_subsets": 100, "kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None,
    "kid_kernel_poly_coef0": 1, "rng_seed": 0, "verbose": False,
}  # fmt: skip


def features(count: int, width: int, device: str, seed: int) -> Tensor:
    """Correlated and not negative, as an encoder's; sides of other seeds are of nearly one distribution."""
    generator = torch.Generator().manual_seed(seed)
    inner = min(64, width)
    mix = torch.randn(inner, width, generator=torch.Generator().manual_seed(0)) / inner**0.5
    return (torch.randn(count, inner, generator=generator) @ mix + 0.1 * seed).relu().to(device)


def sides(bench: Bench, count: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    count, width = (300, 48) if bench.quick else (count, width)
    return features(count, width, device, 1), features(count, width, device, 2)


def numbers(found: Manifold) -> dict[str, float]:
    return {name: getattr(found, name)() for name in NAMES}


def test_manifold_beside_prdc(bench: Bench, device: str) -> None:
    real, synthetic = sides(bench, 5_000, 768, device)
    on_host = real.cpu().double().numpy(), synthetic.cpu().double().numpy()

    def theirs() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            return prdc.compute_prdc(*on_host, 5)

    assert numbers(manifold(real, synthetic, 5)) == pytest.approx(theirs(), rel=0.01)
    impls: dict[str, Case] = {"blocks": lambda: manifold(real, synthetic, 5), "prdc (cpu)": theirs}
    flops = 3 * 2 * len(real) * len(synthetic) * real.shape[1]
    bench.compare(f"manifold {len(real)} x {len(synthetic)} x {real.shape[1]}", device, impls, Work(0.0, flops))


@pytest.mark.parametrize("measure", ["manifold", "memorised"])
def test_fifty_thousand(bench: Bench, device: str, measure: str) -> None:
    """What the features take is not counted: 154 MB a side."""
    real, synthetic = sides(bench, 50_000, 768, device)

    def run() -> object:
        return manifold(real, synthetic, 5) if measure == "manifold" else find_memorised(real, synthetic)

    flops = (3 if measure == "manifold" else 2) * 2 * len(real) ** 2 * real.shape[1]
    name = f"{measure} {len(real)} x {len(synthetic)} x {real.shape[1]}"
    for row in bench.compare(name, device, {"blocks": run}, Work(0.0, flops)):
        assert row.peak_mib is None or row.peak_mib < MOST_MIB


def test_frechet_beside_torch_fidelity(bench: Bench, device: str) -> None:
    real, synthetic = sides(bench, 10_000, 1024, device)
    on_host = real.cpu(), synthetic.cpu()

    def theirs() -> float:
        stats = [fid_features_to_statistics(side) for side in on_host]
        return fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]

    assert frechet_distance(real, synthetic) == pytest.approx(theirs(), rel=0.01)
    impls: dict[str, Case] = {"symmetric": lambda: frechet_distance(real, synthetic), "torch-fidelity (cpu)": theirs}
    bench.compare(f"frechet {len(real)} x {real.shape[1]}", device, impls)


def test_kid_beside_torch_fidelity(bench: Bench, device: str) -> None:
    real, synthetic = sides(bench, 10_000, 1024, device)
    on_host, size = (real.cpu(), synthetic.cpu()), min(1000, len(real) // 2)

    def theirs() -> float:
        return kid_features_to_metric(*on_host, kid_subset_size=size, **KID)["kernel_inception_distance_mean"]

    found = kernel_distance(real, synthetic, subset_size=size).mean
    assert found == pytest.approx(theirs(), rel=0.01)
    impls: dict[str, Case] = {
        "subsets": lambda: kernel_distance(real, synthetic, subset_size=size), "torch-fidelity (cpu)": theirs,
    }  # fmt: skip
    bench.compare(f"kid 100 x {size} x {real.shape[1]}", device, impls)


def test_vendi_beside_vendi_score(bench: Bench, device: str) -> None:
    x, _ = sides(bench, 10_000, 768, device)
    on_host = x.cpu().double().numpy()

    def theirs() -> float:
        return vendi.score_dual(on_host, normalize=True)

    assert vendi_score(x) == pytest.approx(theirs(), rel=0.01)
    impls: dict[str, Case] = {"smaller side": lambda: vendi_score(x), "vendi-score dual (cpu)": theirs}
    bench.compare(f"vendi {len(x)} x {x.shape[1]}", device, impls)


def test_domain_gap(bench: Bench, device: str) -> None:
    real, synthetic = sides(bench, 10_000, 768, device)
    bench.compare(f"domain gap {len(real)} x {real.shape[1]}", device, {"l-bfgs": lambda: domain_gap(real, synthetic)})
