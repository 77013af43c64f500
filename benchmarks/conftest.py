"""The --benchmark flag and the `bench` fixture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.record import Bench

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="measure and record; without it benchmarks only run once")
    parser.addoption("--out", type=Path, default=RESULTS, help="folder of the recorded rows")


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Bench:
    measure = request.config.getoption("--benchmark", default=False)
    return Bench(out=request.config.getoption("--out", default=RESULTS) if measure else None)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    return request.param
