from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stablerep.generate.engines import export, onnx
from stablerep.generate.engines.opening import open_engine
from stablerep.generate.engines.store import Store
from stablerep.generate.pipeline import Pipeline, open_pipeline


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return open_pipeline("default", torch.device("cpu"))


@pytest.fixture(scope="session")
def onnx_store(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline) -> Path:
    """A folder with the embedded default's onnx engine, verified; for reading: copy it to change it."""
    if reason := export.why_not() or onnx.why_not(torch.device("cpu"), torch.float32):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("onnx") / "store"
    open_engine("onnx", pipeline, Store(folder), batch_size=2)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a photo of a dark slim sneaker\na photo of a white bag\n\na photo of a busy dress\n")
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As another process of the same test has: products of other sizes, of threads too, round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
