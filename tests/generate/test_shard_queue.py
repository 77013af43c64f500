"""The queue of a run: what others finish counts and is not painted, what they leave is; what they took is theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stablerep import shards
from stablerep.generate import claims
from stablerep.generate.claims import Claims
from stablerep.generate.shard_queue import ShardQueue
from stablerep.generate.shard_writer import open_writer
from stablerep.generate.summary import RunProgress
from stablerep.generate.worker import Block
from stablerep.prompts import Prompt
from stablerep.runlog import progress


def block(shard: int) -> Block:
    return Block(shard, [Prompt(shard, f"prompt {shard}")])


def samples(shard: int) -> list[shards.Sample]:
    pictures = [shards.Picture(index, bytes([shard, index]), {"reason": ""}) for index in range(2)]
    return [shards.Sample(shard, f"prompt {shard}", "jpg", pictures)]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Claims]:
    """Another process at the same folder."""
    shards.start_dataset(tmp_path, {"num_images_per_prompt": 2})
    with Claims(tmp_path) as claims:
        yield claims


@pytest.fixture
def ours(tmp_path: Path, other: Claims) -> Iterator[tuple[ShardQueue, RunProgress]]:
    with Claims(tmp_path) as claims, open_writer(tmp_path) as writer, progress("test", 6, "images", show=False) as bar:
        run_progress = RunProgress(bar, 2, completed=0)
        yield ShardQueue([block(shard) for shard in range(3)], claims, writer, run_progress), run_progress
        assert run_progress.completed == 6 and len(writer.done) == 3


def paint(queue: ShardQueue, run_progress: RunProgress) -> list[int]:
    """Paint what the queue gives now."""
    painted = []
    for each in queue:
        run_progress.add_painted(1)
        queue.write(each, samples(each.shard))
        painted.append(each.shard)
    return painted


def test_what_others_finish_counts_and_what_they_leave_is_painted(
    tmp_path: Path, other: Claims, ours: tuple[ShardQueue, RunProgress]
) -> None:
    queue, run_progress = ours
    assert other.take("000000") and other.take("000002")
    assert paint(queue, run_progress) == [1] and queue
    shards.write_shard(tmp_path, 2, samples(2), 2)
    other.release("000002")
    assert paint(queue, run_progress) == [] and queue
    assert run_progress.completed == 4
    other.release("000000")  # and never painted it
    assert paint(queue, run_progress) == [0] and not queue
    assert (run_progress.kept, run_progress.rejected) == (4, 0)  # by us


def test_whoever_stood_still_does_not_write(
    tmp_path: Path,
    other: Claims,
    ours: tuple[ShardQueue, RunProgress],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue, run_progress = ours
    first = next(queue)
    run_progress.add_painted(1)
    monkeypatch.setattr(claims, "STALE_SECONDS", -1.0)
    assert not other.take("000000") and other.take("000000")  # it looks twice, as if in between time had passed
    monkeypatch.undo()
    queue.write(first, samples(0))
    assert "shard 000000 was taken over by process" in caplog.text
    assert not shards.is_done(tmp_path, 0) and run_progress.completed == 0
    assert paint(queue, run_progress) == [1, 2] and queue
    shards.write_shard(tmp_path, 0, samples(0), 2)
    other.release("000000")
    assert paint(queue, run_progress) == [] and not queue
