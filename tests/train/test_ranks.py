"""Runs under torchrun as a user starts them: what is printed, and who dies of what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stablerep.train import checkpoint
from tests.data.pictures import write_shards
from tests.train.test_loop import lines

TINY = "--arch test_vit --image-size 32 --batch-size 12 --views-per-prompt 3 --head-hidden 16 --head-out 8 --device cpu"
SCRIPT = "from stablerep.cli import train; train()\n"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", prompts=10, per_prompt=4)


def torchrun(tmp_path: Path, options: str, flags: list[str], script: str = SCRIPT) -> subprocess.Popen[str]:
    """stablerep-train on two ranks; each writes its process id beside the script."""
    path = tmp_path / "train.py"
    path.write_text(f"import os\nopen(f'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid()))\n{script}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options.split()]
    return subprocess.Popen(
        [*command, str(path), *TINY.split(), *flags],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_mistake_is_said_once_and_not_by_each_rank(tmp_path: Path) -> None:
    _, said = torchrun(
        tmp_path, "", ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    ).communicate()
    ours = [line for line in said.splitlines() if line.startswith("stablerep-train:")]
    assert len(ours) == 1 and "nowhere" in ours[0], said
    assert not (tmp_path / "out").exists()


def test_a_rank_that_ends_is_named_with_its_last_line(shards: Path, tmp_path: Path) -> None:
    script = (
        "from stablerep.train import loop\noriginal = loop.learning_rate\n"
        "def learning_rate(step, **fields):\n"
        "    if step == 2 and os.environ['RANK'] == '1': raise ValueError('a disk\\nof smoke')\n"
        "    return original(step, **fields)\n"
        "loop.learning_rate = learning_rate\n"
    )
    flags = ["--data", str(shards), "--out", str(tmp_path / "out"), "--steps", "100000"]
    start = time.monotonic()
    _, said = torchrun(tmp_path, "", flags, script + SCRIPT).communicate(timeout=120)
    assert time.monotonic() - start < 60
    ended = [line for line in said.splitlines() if " ended first, with " in line]
    assert ended == [f"rank 1 on {os.uname().nodename} ended first, with ValueError: of smoke"], said
    assert said.count("ValueError: a disk") == 1 and "Connection closed" not in said


def test_a_killed_rank_is_started_again_and_the_run_goes_on(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = f"--steps 40 --checkpoint-every 10 --log-every 5 --base-lr 0.001 --data {shards} --out {out}".split()
    run = torchrun(tmp_path, "--max-restarts=1", flags)
    while not checkpoint.steps(out / "checkpoints"):
        assert run.poll() is None, run.stderr and run.stderr.read()
        time.sleep(0.02)
    os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
    printed, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert printed.count("encoder in ") == 1
    assert (out / "exported").exists()
    assert [line["step"] for line in lines(out)] == list(range(5, 41, 5))
