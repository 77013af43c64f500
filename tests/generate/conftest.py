from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stablerep.generate.pipeline import Pipeline, open_pipeline


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return open_pipeline("default", torch.device("cpu"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a photo of a dark slim sneaker\na photo of a white bag\n\na photo of a busy dress\n")
    return path
