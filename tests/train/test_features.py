"""What is said of the rows that the loss compares, against pairs counted one by one and singular values."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from stablerep.models import create_encoder
from stablerep.train import metrics
from stablerep.train.features import NAMES, HeadRows, describe
from stablerep.train.flops import flops_of
from stablerep.train.loop import build, train
from stablerep.train.metrics import Metrics
from tests.data.pictures import write_shards
from tests.train.test_loop import config_for
from tests.waits import Waits


@pytest.mark.parametrize(("rows", "width"), [(63, 8), (12, 40), (2500, 16)])
def test_rows_are_described_as_by_pairs(rows: int, width: int) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) + 0.5
    labels = torch.arange(rows) * 7919 % 5 * 1_000_003  # neighbours differ, values are large
    said = dict(zip(NAMES, describe(x, labels).tolist(), strict=True))

    unit = F.normalize(x.double())
    cosines, same = unit @ unit.T, labels[:, None] == labels
    itself = torch.eye(rows, dtype=torch.bool)
    assert said["positive_similarity"] == pytest.approx(cosines[same & ~itself].mean().item(), abs=1e-5)
    assert said["negative_similarity"] == pytest.approx(cosines[~same].mean().item(), abs=1e-5)
    assert said["feature_spread"] == pytest.approx((unit.var(0, unbiased=False).sqrt().mean() * width**0.5).item())
    seen = unit[:: -(-rows // 1024)]
    values = torch.linalg.svdvals(seen - seen.mean(0))
    shares = values[values > 1e-9] / values.sum()
    assert said["effective_rank"] == pytest.approx(torch.exp(-(shares * shares.log()).sum()).item(), rel=1e-4)


def test_describing_waits_for_nothing_and_asks_for_a_label_a_row() -> None:
    with Waits() as waits:
        describe(torch.randn(24, 8), torch.arange(24) // 3)
    assert not +waits.counts
    with pytest.raises(ValueError, match="23 labels for 24 rows"):
        describe(torch.randn(24, 8), torch.zeros(23, dtype=torch.int64))


def test_collapse_is_said_once_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    head, labels = torch.nn.Identity(), torch.arange(32) // 4
    metrics = Metrics(torch.device("cpu"), 32, HeadRows(head))
    spread_out = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    one_place = torch.ones(32, 16) + 0.01 * spread_out
    said = []
    with caplog.at_level(logging.WARNING, "stablerep.train"):
        for rows in (spread_out, one_place, one_place, spread_out):
            head(rows)
            means = metrics.drain(labels)
            said.append(len(caplog.records))
            assert means["effective_rank"] > 10  # directions of the noise around the one place
    assert said == [0, 1, 1, 2]
    assert "the features collapse" in caplog.text and "lower --base-lr" in caplog.text


def test_a_run_writes_them(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", prompts=10, per_prompt=4)
    train(config_for(shards, tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(set(NAMES) <= line.keys() for line in lines)
    assert all("mfu" not in line for line in lines)  # no CPU is in the table
    assert all(-1 <= line[name] <= 1.0001 for line in lines for name in NAMES[:2])


def test_a_head_that_is_compiled_in_place_still_hands_on_its_rows() -> None:
    head = torch.nn.Linear(8, 4)
    kept = HeadRows(head)
    head.compile(backend="eager")
    rows = head(torch.randn(6, 8))
    assert kept.rows is not None and torch.equal(kept.rows, rows) and not kept.rows.requires_grad


def test_flops_are_those_of_the_data_sheets(tmp_path: Path) -> None:
    """A ViT-S/16 at 224 takes 4.6 GMACs forward (timm's tables), a step three times that; the head's are added."""
    config = config_for(tmp_path, tmp_path, arch="vit_small_patch16_224", image_size=224)
    model, _ = build(config, torch.device("cpu"))
    encoder, head = model.get_submodule("encoder"), model.get_submodule("head")
    assert flops_of(encoder, None, 224) == pytest.approx(3 * 2 * 4.6e9, rel=0.01)
    of_head = 3 * 2 * (384 * 16 + 16 * 16 + 16 * 8)
    assert flops_of(encoder, head, 224) - flops_of(encoder, None, 224) == of_head
    assert next(encoder.parameters()).device.type == "cpu" and encoder.training
    pooled = create_encoder("test_vit3", 160)  # by attention of a learned query, a weight that a module is handed
    assert flops_of(pooled, None, 160) > 0 and all(weight.requires_grad for weight in pooled.parameters())


def peak_of_a_run(data: Path, out: Path, fields: dict[str, Any]) -> list[float]:
    """Pictures a second at full utilisation, by the lines of a run whose ranks do 1e12 a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "peak_flops", lambda device: 1e12)
        train(config_for(data, out, precision="bf16", **fields))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["images_per_second"] / line["mfu"] for line in lines]


@pytest.mark.parametrize(
    "fields", [{"arch": "test_resnet"}, {"arch": "test_vit", "parallel": "fsdp"}], ids=["over_ranks", "fsdp"]
)
def test_utilisation_is_of_the_whole_encoder_on_any_ranks(
    tmp_path: Path, fields: dict[str, Any], run_ranks: Callable[..., list[Any]]
) -> None:
    """Also where its BatchNorms ask other ranks, and where its weights are shared out."""
    shards = write_shards(tmp_path / "shards", prompts=10, per_prompt=4)
    config = config_for(shards, tmp_path, **fields)
    model, _ = build(config, torch.device("cpu"))
    expected = 2 * 1e12 / flops_of(model.get_submodule("encoder"), model.get_submodule("head"), config.image_size)
    for found in run_ranks(2, peak_of_a_run, shards, tmp_path / "run", fields):
        assert found == pytest.approx([expected] * len(found))
