"""The demo in miniature: prompts in, a report out, through every room."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from examples.fashion import demo

TINY = {
    "arch": "resnet10t", "image_size": 32, "batch_size": 16, "steps": 3, "views_per_prompt": 4, "head_hidden": 16,
    "head_out": 8, "log_every": 1, "base_lr": 1e-3,
}  # fmt: skip
COLUMNS = {"features", "images", "linear_top1", "few_shot_10", "few_shot_10_ci95", "knn_top1", "seconds"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "IMAGES_PER_PROMPT", 4)
    monkeypatch.setattr(demo, "NUM_IMAGES", 800)
    monkeypatch.setattr(demo, "SAMPLING", {"num_inference_steps": 2, "scheduler": "dpmsolver++"})
    monkeypatch.setattr(demo, "TRAINING", TINY)
    monkeypatch.setattr(demo, "MAX_TRAIN", 200)


@pytest.mark.usefixtures("tiny")
def test_prompts_in_a_report_out_and_a_rerun_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo.demo(out)
    results = json.loads((out / "results.json").read_text())
    assert [row["features"] for row in results] == list(demo.NAMES)
    for row in results:
        assert set(row) == COLUMNS
        assert all(0 <= row[name] <= 100 for name in ("linear_top1", "few_shot_10", "knn_top1"))
        trained = row["features"].startswith(("simclr", "stablerep"))
        assert (row["images"] == 800) == (row["seconds"] > 0) == trained
    poc = json.loads((out / "poc.json").read_text())
    assert [arm["name"] for arm in poc["arms"]] == list(demo.FEATURES)
    assert poc["recommendation"]["reason"] == "one_seed"

    page = (out / "report.html").read_text()
    assert "another seed may move the result" in page
    assert page.count("data:image/") >= 40
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # self-contained

    shards = {path: path.stat().st_mtime_ns for path in out.glob("painted/*/*")}
    demo.demo(out)
    assert json.loads((out / "results.json").read_text()) == results
    assert shards == {path: path.stat().st_mtime_ns for path in out.glob("painted/*/*")}
