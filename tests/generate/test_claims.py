"""Claims: only one has a shard; of whoever has died it is taken over, of whoever lives it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stablerep.config import UserError
from stablerep.generate import claims
from stablerep.generate.claims import Claims


def leave_claim(out: Path, name: str, generation: int = 0, **changes: object) -> Path:
    """A claim as a process leaves it that ended without a word; of this machine, if not changed."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = {"host": "here", "pid": child.pid, "started": claims._start_of(child.pid), "machine": claims._machine()}
    child.wait()
    path = out / ".claims" / f"{name}.{generation}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(owner | changes))
    return path


def test_only_one_has_a_shard_and_gives_it_back(tmp_path: Path) -> None:
    with Claims(tmp_path / "out") as ours, Claims(tmp_path / "out") as theirs:
        assert ours.take("000003") and not theirs.take("000003") and theirs.take("000004")
        assert ours.holds("000003") and not theirs.holds("000003")
        assert f"process {os.getpid()} on " in theirs.holder("000003")
        ours.release("000003")
        assert theirs.take("000003")
    assert not (tmp_path / "out").exists()  # both were empty-handed


def test_the_claim_of_a_dead_process_goes_to_exactly_one(tmp_path: Path) -> None:
    for attempt in range(20):
        name = f"{attempt:06}"
        leave_claim(tmp_path, name)
        takers = [Claims(tmp_path) for _ in range(8)]
        with ThreadPoolExecutor(len(takers)) as pool:
            assert sum(pool.map(lambda taker, name=name: taker.take(name), takers)) == 1


def test_what_dead_processes_left_goes_at_the_end(tmp_path: Path) -> None:
    leave_claim(tmp_path, "000000")
    leave_claim(tmp_path, "000007")
    with Claims(tmp_path) as ours:
        assert ours.take("000000")
    assert not list(tmp_path.iterdir())


def test_another_machine_is_alive_as_long_as_its_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.3)
    path = leave_claim(tmp_path, "000001", machine="another", host="there", pid=4711)
    with Claims(tmp_path) as ours:
        for _ in range(5):
            assert not ours.take("000001")
            time.sleep(0.1)
            os.utime(path)  # its clock may say what it likes
        assert ours.holder("000001") == "process 4711 on there"
        assert not ours.take("000001")
        time.sleep(0.4)
        assert ours.take("000001")


def test_a_claim_that_was_taken_over_is_lost_and_not_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.1)
    with Claims(tmp_path) as stopped, Claims(tmp_path) as other:
        assert stopped.take("000001") and not other.take("000001")
        time.sleep(0.2)  # shorter than between two heartbeats
        assert other.take("000001")
        assert not stopped.holds("000001") and other.holds("000001")
        stopped.release("000001")
        assert other.holds("000001")


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.05)
    with Claims(tmp_path) as ours:
        assert ours.take("000001")
        (path,) = (tmp_path / ".claims").iterdir()
        before = path.stat().st_mtime_ns
        time.sleep(0.3)
        assert path.stat().st_mtime_ns > before


def test_a_refused_run_leaves_no_folder_that_was_not_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(UserError), Claims(tmp_path / name) as ours, ours.alone("begin"):
            raise UserError("no such engine")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_no_claims_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Claims(tmp_path / "file/out") as ours, pytest.raises(UserError, match="is a file, or lies below one"):
        ours.take("000001")
