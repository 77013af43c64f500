"""Metrics on disk, and progress for whom it may concern."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stablerep.runlog import RunLog, progress


def lines(folder: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_write_is_a_json_line_and_events_lie_beside_it(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run") as log:
        log.write(1, loss=2.5, lr=0.1)
        log.write(2, loss=float("nan"))
    assert lines(tmp_path / "run") == [{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 2, "loss": None}]
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_a_resumed_run_writes_its_steps_anew(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, loss=0.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut off while writing
    with RunLog(tmp_path, first_step=4) as log:
        log.write(4, loss=1.0)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0)]


def test_progress_off_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 1000, "images", line_seconds=0.0) as bar:
        bar.update(500, "loss 1.250")
        bar.update(1000)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2
    assert printed[0].startswith("train: 500/1,000 images, ") and printed[0].endswith("loss 1.250")
    assert printed[1].startswith("train: 1,000/1,000 images, ")


def test_a_quick_loop_says_one_line_and_other_ranks_none(capsys: pytest.CaptureFixture[str]) -> None:
    for show in (True, False):
        with progress("eval", 10, "images", show=show) as bar:
            for done in range(1, 11):
                bar.update(done)
    assert len(capsys.readouterr().err.splitlines()) == 1
