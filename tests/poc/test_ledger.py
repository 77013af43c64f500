"""What a step took stays known, over stops and kills."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stablerep.poc import ledger
from stablerep.poc.ledger import Ledger

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "BEAT_SECONDS", 0.02)


def kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["step"]


def test_seconds_are_on_the_disk_while_a_step_runs_and_add_up_over_stops(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"

    def work() -> float:
        time.sleep(0.3)
        return kept(path)["seconds"]  # what a kill at this moment would leave

    def stopped() -> None:
        time.sleep(0.1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ledger(path, None, CPU).run("step", "train", 5, stopped)
    first = kept(path)
    assert first["seconds"] >= 0.1 and not first["done"] and first["kwh"] is None
    beaten = Ledger(path, None, CPU).run("step", "train", 5, work)
    last = kept(path)
    assert first["seconds"] + 0.1 < beaten <= last["seconds"] and last["seconds"] >= 0.4 and last["done"]
    assert Ledger(path, None, CPU).run("step", "train", 5, lambda: 7) == 7  # done: asked again at no cost
    assert kept(path) == last


def test_energy_is_of_the_watts_or_of_the_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "watts.json"
    Ledger(path, 360.0, CPU).run("step", "paint", 1, lambda: time.sleep(0.1))
    assert kept(path)["kwh"] == pytest.approx(kept(path)["seconds"] * 1e-4)
    joules = iter(range(0, 36_000_000, 360_000))  # a tenth of a kWh each time it is asked
    monkeypatch.setattr(ledger, "energy_counter", lambda device: lambda: next(joules))
    path = tmp_path / "counter.json"
    Ledger(path, None, CPU).run("step", "paint", 1, lambda: time.sleep(0.03))
    assert kept(path)["kwh"] >= 0.1 and (10 * kept(path)["kwh"]) % 1 == pytest.approx(0, abs=1e-6)


def test_a_cpu_counts_no_energy() -> None:
    assert ledger.energy_counter(CPU) is None
