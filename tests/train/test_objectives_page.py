"""The example of docs/objectives.md runs, learns, and is one model on one rank and on two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stablerep import distributed
from stablerep.data.loader import Batch
from stablerep.models import create_encoder, load_encoder
from stablerep.train.config import OBJECTIVES, TrainConfig
from stablerep.train.objectives import create_objective
from tests.data.pictures import write_folder
from tests.train.test_objectives import gradients_of

PAGE = Path(__file__).parents[2] / "docs/objectives.md"


def example() -> str:
    return PAGE.read_text().split("```python\n")[1].split("```")[0]


def test_the_page_names_every_objective() -> None:
    rows = [
        line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `") and "| `--" not in line
    ]
    assert rows == list(OBJECTIVES)


def test_the_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", 24)
    try:
        exec(example(), {"__name__": "example"})
    finally:
        OBJECTIVES.pop("barlow_twins", None)
    losses = [json.loads(line)["loss"] for line in Path("runs/twins/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 10 and np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])  # of 8 pairs a line, so noisy
    assert load_encoder("runs/twins")[0].num_features


def loss_and_gradients() -> tuple[float, dict[str, np.ndarray]]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(example().split("stablerep.train(")[0], names)
    config = TrainConfig(
        data="none", out=Path("none"), objective="barlow_twins", batch_size=8, head_hidden=8, head_out=4
    )
    torch.manual_seed(0)
    model = create_objective(create_encoder("test_resnet", 32), config, bf16=False).double()
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    images = images.chunk(distributed.world_size())[distributed.rank()]
    loss = model(Batch(images, torch.arange(len(images)) // 2))
    loss.backward()
    return loss.item(), gradients_of(model)


def test_the_example_is_the_same_on_two_ranks(run_ranks: Callable[..., list[Any]]) -> None:
    try:
        loss, gradients = loss_and_gradients()
    finally:
        OBJECTIVES.pop("barlow_twins", None)
    ranks = run_ranks(2, loss_and_gradients)
    for name, expected in gradients.items():
        mean = np.mean([found[name] for _, found in ranks], axis=0)
        np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max() + 1e-12, err_msg=name)
    assert [one for one, _ in ranks] == pytest.approx([loss] * 2, rel=1e-10)
