"""The watchdog and the records of `make gpu-check`, and what its tools' text says, without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_pack, gpu_tools, watchdog
from benchmarks.checks import ROOT, Numbers, Skip


def passes() -> Numbers:
    return {"images_per_second": 5.5}


def skips() -> Numbers:
    raise Skip("no tool for it")


def lacks_a_package() -> Numbers:
    raise ModuleNotFoundError("No module named 'x'", name="x")


def fails() -> Numbers:
    raise AssertionError("off by 1e-1")


def dies() -> Numbers:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hangs_with_a_child(pid: Path) -> Numbers:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pid.write_text(str(child.pid))
    time.sleep(600)
    return {}


class Hangs:
    def __init__(self, pid: Path) -> None:
        self.pid = pid

    def __call__(self) -> Numbers:
        return hangs_with_a_child(self.pid)


@pytest.mark.parametrize(("check", "status", "detail"), [
    (passes, "passed", ""),
    (skips, "skipped", "no tool for it"),
    (lacks_a_package, "skipped", "x is not installed"),
    (fails, "failed", "AssertionError: off by 1e-1"),
    (dies, "failed", f"its process died (exit code {-signal.SIGSEGV})"),
])  # fmt: skip
def test_each_end_of_a_check_is_a_result(check: watchdog.Check, status: str, detail: str) -> None:
    result = watchdog.run_check("some", check)
    assert (result.name, result.status, result.detail) == ("some", status, detail)


def test_a_check_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    watchdog.run_check("first", passes)  # imports torch, for both
    result = watchdog.run_check("slow", Hangs(tmp_path / "pid"), most_seconds=4)
    assert (result.status, result.detail) == ("failed", "still ran after 4 s")
    child = Path("/proc") / (tmp_path / "pid").read_text()
    deadline = time.monotonic() + 10
    while child.exists() and "Z" not in (child / "stat").read_text().rsplit(")", 1)[1].split()[0]:
        assert time.monotonic() < deadline, "what the check had started still runs"
        time.sleep(0.05)


ENVIRONMENT = {"commit": "abc", "dirty": False, "device": "NVIDIA H200"}


@pytest.fixture
def on_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.record, "environment", lambda device: dict(ENVIRONMENT))
    monkeypatch.setattr(gpu_check.record, "device_slug", lambda device: "nvidia-h200")


def test_a_line_is_written_as_each_check_ends_and_what_has_passed_is_not_run_again(
    on_h200: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []

    def run_check(name: str, check: watchdog.Check, most_seconds: float) -> watchdog.Result:
        seen.append([row["name"] for row in gpu_check.recorded([tmp_path])])
        return watchdog.Result(name, "failed" if name == "b" else "passed", 60.0, "", {"rate": 2.5})

    monkeypatch.setattr(gpu_check, "run_check", run_check)
    checks = dict.fromkeys("abc", passes)
    assert gpu_check.run_all(checks, tmp_path, [], float("inf")) == 1
    assert seen == [[], ["a"], ["a", "b"]]
    rows = list(gpu_check.recorded([tmp_path, tmp_path]))
    assert [(row["name"], row["status"], row["numbers"]) for row in rows] == [
        ("a", "passed", {"rate": 2.5}), ("b", "failed", {"rate": 2.5}), ("c", "passed", {"rate": 2.5})
    ]  # fmt: skip
    assert gpu_check.run_all(checks, tmp_path, rows, float("inf")) == 1  # b alone
    assert len(seen) == 4
    assert capsys.readouterr().out.count("it has passed for this commit") == 2


@pytest.mark.parametrize(
    "change", [{"commit": "def"}, {"dirty": True}, {"device": "NVIDIA B200"}, {"status": "failed"}]
)
def test_what_passed_elsewhere_or_on_changed_files_does_not_count(change: dict[str, object]) -> None:
    row = {"name": "a", "status": "passed", **ENVIRONMENT}
    assert gpu_check.is_recorded([row], "a", ENVIRONMENT)
    assert not gpu_check.is_recorded([row | change], "a", ENVIRONMENT)
    assert not gpu_check.is_recorded([row], "b", ENVIRONMENT)
    assert not gpu_check.is_recorded([row], "a", ENVIRONMENT | {"dirty": True})


def test_no_check_is_begun_that_is_predicted_to_end_too_late(
    on_h200: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = []

    def run_check(name: str, check: watchdog.Check, most_seconds: float) -> watchdog.Result:
        limits.append(most_seconds)
        return watchdog.Result(name, "passed", 1.0, "", {})

    monkeypatch.setattr(gpu_check, "run_check", run_check)
    rows = [{"name": "long", "status": "passed", "seconds": 100.0, **ENVIRONMENT, "commit": "older"}]
    assert gpu_check.run_all({"long": passes, "new": passes}, tmp_path, rows, 90.0) == 0
    assert "left     long: 100 s are predicted, 90 are left" in capsys.readouterr().out
    assert len(limits) == 1 and 80 < limits[0] <= 90


def test_records_in_the_repository_predict_and_are_whole() -> None:
    rows = list(gpu_check.recorded([gpu_check.RESULTS]))
    names = {name for part in gpu_check.parts_of(gpu_check.RESULTS) for name in part}
    assert set(gpu_check.predicted_seconds(rows)) <= names
    assert set(gpu_check.NEEDS) <= names


def test_without_a_gpu_each_check_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_check, "_has_module", lambda name: name != "nvidia.dali")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--only", "training", "sd15_rate"])
    assert gpu_check.main() == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["skipped", "training", "26", "s", "no", "CUDA", "GPU,", "no", "nvidia.dali"] in lines
    assert ["skipped", "sd15_rate", "95", "s", "no", "CUDA", "GPU"] in lines


NCU_TEXT = """==PROF== Connected to process 7
[7] python3.12@127.0.0.1
  _logsumexp (132, 2, 1)x(256, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    ----------------------- ----------- ------------
    DRAM Throughput                   %         3.41
    Duration                         ms         1.29
    Compute (SM) Throughput           %        81.50
  _gradient (8192, 1, 1)x(128, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Section: GPU Speed Of Light Throughput
    Duration                         us     1,020.50
    Registers Per Thread register/thread          40
"""


def test_ncu_text_is_read_by_kernel_in_milliseconds() -> None:
    assert gpu_tools.ncu_numbers(NCU_TEXT) == {
        "_logsumexp": {"ms": 1.29, "sm_share": 81.5, "dram_share": 3.41},
        "_gradient": {"ms": 1.0205, "registers": 40.0},
    }


def test_a_pack_that_is_too_large_is_refused_in_one_line(tmp_path: Path) -> None:
    with (tmp_path / "some.whl").open("wb") as file:
        file.truncate(gpu_pack.MOST_MIB * 2**20)
    with pytest.raises(SystemExit, match=r"^gpu-pack: .* MiB, more than 60$"):
        gpu_pack._check_size(tmp_path)


def test_a_python_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^gpu-pack: --python python9: .*No such file"):
        gpu_pack.pack(tmp_path / "pack", "python9", "90-real")


def test_what_the_tools_look_at_runs_in_the_interpreter() -> None:
    code = "from benchmarks import gpu_tools; gpu_tools.small_ops('cpu', (30,)); gpu_tools.loss('cpu', rows=130)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, check=True)


def test_records_are_lines_of_json() -> None:
    for path in gpu_check.RESULTS.glob("*.jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines()), path
