"""Painting in Ray workers: the same bytes, whoever dies on the way."""
# ruff: noqa: E402  (without Ray nothing below can be imported)

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ray = pytest.importorskip("ray")

import stablerep
from stablerep import cli, shards
from stablerep.config import UserError
from stablerep.generate import ray_dispatch, ray_workers
from stablerep.generate.config import GenerateConfig
from stablerep.generate.dry_run import estimate
from stablerep.generate.ray_dispatch import MOST_FAILURES
from stablerep.generate.ray_workers import BlockResult, RayWorker, WorkerInfo
from stablerep.generate.verify import verify
from stablerep.generate.worker import Block, RunSpec
from stablerep.prompts import Prompt
from tests.generate.folders import digests

pytestmark = pytest.mark.usefixtures("one_thread")


FEW = {"num_images_per_prompt": 2, "num_inference_steps": 1, "prompts_per_shard": 1, "batch_size": 3, "device": "cpu"}
DEADLY, DEADLY_ONCE = "a photo of a fatal bag", "a photo of a bag that is fatal once"


class Mortal(RayWorker):
    """Dies, as if killed from outside, of certain prompts; leaves a file for each block that it is given."""

    def paint(self, run: RunSpec, block: Block) -> BlockResult:
        config = run.config
        given = Path(config.prompts).with_name("given") / f"{config.guidance_scale}_{block.shard}"
        again = given.exists()
        given.touch()
        text = block.prompts[0].text
        if text == DEADLY or (text == DEADLY_ONCE and config.guidance_scale == 1 and not again):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().paint(run, block)


@pytest.fixture(scope="module")
def two_processors() -> Iterator[None]:
    """A cluster that stablerep-gen joins, with room for two actors of one thread."""
    folder = tempfile.mkdtemp(prefix="ray_")
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        object_store_memory=2**27,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_sweep_has_the_bytes_of_a_single_process(
    two_processors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though an actor dies, prompts are bad, pictures are painted anew, and writing is slow."""
    rows: list[dict[str, object]] = [
        {"prompt": "a photo of a white bag"},
        {"prompt": "a photo of a coat", "guidance_scale": 7.5, "negative_prompt": "a shirt", "seed": 9},
        {"prompt": ["no", "text"]},
        {"prompt": DEADLY_ONCE},
        {"prompt": "a photo of a boot, " + "very " * 100 + "long"},
        {"prompt": ""},
        *({"prompt": f"a photo of a {name}"} for name in ("dress", "shirt", "sandal", "sneaker")),
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (given := tmp_path / "given").mkdir()
    fields = FEW | {"prompts": tmp_path / "p.jsonl", "guidance_scale": [1, 3], "screen": "drop", "flat_below": 60.0}
    alone = stablerep.generate(out=tmp_path / "alone", **fields)
    write, ahead = shards.write_shard, []

    def slow(out: Path, *args: object, **kwargs: int) -> dict[str, object]:
        time.sleep(0.3)
        ahead.append(len(list(given.iterdir())) - len(list((tmp_path / "many").rglob("*_stats.json"))))
        return write(out, *args, **kwargs)

    monkeypatch.setattr(ray_dispatch, "RayWorker", Mortal)
    monkeypatch.setattr(shards, "write_shard", slow)
    with caplog.at_level(logging.INFO):
        many = stablerep.generate(out=tmp_path / "many", ray="auto", **fields)
    assert digests(tmp_path / "many") == digests(tmp_path / "alone")
    for one, other in zip(alone.runs, many.runs, strict=True):
        assert (one.workers, other.workers) == (1, 2)
        same = ("images", "images_made", "prompts_empty", "prompts_cut", "prompts_unreadable", "screened", "engine")
        assert [getattr(one, name) for name in same] == [getattr(other, name) for name in same]
        assert one.prompts_cut == one.prompts_unreadable == 1 and one.screened
        assert other.wait_share > 0
    assert max(ahead) <= 2 * 2 + 1, "more is under way than two blocks an actor, and the one that is written"
    assert max(ahead) >= 3, "actors wait for the writer with every block"
    said = [record.getMessage() for record in caplog.records]
    assert said.count("painting on 2 workers, 1 thread each (OMP_NUM_THREADS)") == 1
    assert sum(line.startswith("worker ") and "--prompts row 2 is no text but a list" in line for line in said) == 1
    assert sum(" is lost: " in line for line in said) == 1


@pytest.mark.slow
def test_a_block_that_kills_its_actors_is_left_out(
    two_processors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["a photo of a boot", DEADLY, "a photo of a dress", "a photo of a coat"]
    (tmp_path / "p.txt").write_text("\n".join(lines))
    (tmp_path / "given").mkdir()
    flags = [word for name, value in FEW.items() for word in ("--" + name.replace("_", "-"), str(value))]
    argv = ["--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out"), *flags]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(ray_dispatch, "RayWorker", Mortal)
        cli.gen([*argv, "--ray", "auto"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count(" is lost: ") == MOST_FAILURES and "shard 1 (prompts 1 to 1: " in error.splitlines()[-1]
    assert sorted(path.name[:6] for path in (tmp_path / "out").glob("*_stats.json")) == ["000000", "000002", "000003"]
    cli.gen(argv)
    assert not verify(tmp_path / "out").problems


@pytest.mark.slow
def test_a_model_that_opens_nowhere(two_processors: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("a bag\n")
    argv = ["--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out"), "--model", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        cli.gen([*argv, "--ray", "auto", "--device", "cpu"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[1].startswith(f"stablerep-gen: --model {tmp_path} is no")
    assert "where --model must lie too" in said[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": "some"}, "--gpus must be all or a number of at least 1, got 'some'"),
        ({"gpus": 0}, "--gpus must be all"),
        ({"gpus": 2, "device": "cpu"}, "--gpus 2 and --device cpu exclude each other"),
        ({"ray": "local", "device": "cuda:1"}, "--device cuda:1"),
    ],
)
def test_flags_that_contradict(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerateConfig(prompts=Path("p.txt"), out=Path("o"), **changes)


def test_room_in_a_cluster(two_processors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"prompts": Path("p.txt"), "out": Path("o"), "ray": "auto"}
    plan = ray_workers.plan_for(GenerateConfig(**base), one_machine=False)
    assert (plan.count, plan.device, plan.threads) == (2, "cpu", 1)
    with pytest.raises(UserError, match="--gpus 2: the Ray cluster has 0"):
        ray_workers.plan_for(GenerateConfig(**base, gpus=2), one_machine=False)
    (tmp_path / "p.txt").write_text("a bag\na boot\n")
    few = FEW | {"prompts": tmp_path / "p.txt", "out": tmp_path / "out", "dry_run": True}
    estimated = estimate(GenerateConfig(**few, ray="auto"))
    assert estimated.workers == 2 and "\nhours " in str(estimated) and " on 2 workers" in str(estimated)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(UserError, match=r"no machine of the cluster has 3 processors.*OMP_NUM_THREADS=2"):
        ray_workers.plan_for(GenerateConfig(**base), one_machine=False)


def handle(*blocks: Block) -> ray_dispatch._WorkerHandle:
    return ray_dispatch._WorkerHandle(None, "worker", WorkerInfo("host", "cpu", "", "", True, []), list(blocks))


def test_blocks_that_failed_are_tried_alone() -> None:
    blocks = [Block(number, [Prompt(number, "")]) for number in range(9)]
    queue = ray_dispatch._BlockQueue(blocks[:4])
    busy = handle()
    busy.blocks += [queue.take(busy), queue.take(busy)]
    assert busy.blocks == blocks[:2] and queue.take(busy) is None
    queue.failed(busy.blocks, "killed")
    assert queue.take(handle(blocks[8])) is None, "the next one has failed: not beside another"
    first, second = queue.take(one := handle()), queue.take(other := handle())
    assert (first, second) == (blocks[0], blocks[1])
    one.blocks, other.blocks = [first], [second]
    assert queue.take(one) is None
    queue.done(second)
    queue.failed([first], "killed")
    queue.failed([queue.take(handle())], "killed")
    assert queue.left_out == ["shard 0 (prompts 0 to 0: killed)"]
    assert [queue.take(handle()), queue.take(handle())] == blocks[2:4] and not queue


def test_when_every_block_fails_it_is_not_the_blocks() -> None:
    queue = ray_dispatch._BlockQueue([Block(number, [Prompt(number, "")]) for number in range(9)])
    with pytest.raises(UserError, match="3 blocks in a row ended their workers, the last one: broken"):
        while block := queue.take(handle()):
            queue.failed([block], "broken")
    assert len(queue.left_out) == 3


def descendants(pid: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_agent(pid: int) -> bool:
    """Two idle processes of Ray's own, which try for a minute to tell somebody that the others have gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"ray::DashboardAgent", b"ray::RuntimeEnvAgent"))
    except OSError:
        return True


@pytest.mark.slow
def test_the_driver_is_killed(tmp_path: Path) -> None:
    prompts, out = tmp_path / "p.txt", tmp_path / "out"
    prompts.write_text("\n".join(f"a photo of a {name}" for name in ("boot", "bag", "coat", "shirt") * 8))
    config = {**FEW, "num_inference_steps": 4}
    fields = config | {"prompts": str(prompts), "out": str(out), "ray": "local"}
    program = f"import stablerep; stablerep.generate(**{fields})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["TMPDIR"] = str(short := Path(tempfile.mkdtemp()))  # a killed Ray leaves its folder
    driver = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("*_stats.json")):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        processes = descendants(driver.pid)
    finally:
        driver.kill()
        driver.wait()
    assert len(processes) >= 2
    deadline = time.monotonic() + 30
    while left := [pid for pid in processes if Path(f"/proc/{pid}").exists() and not is_agent(pid)]:
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.1)
    done = len(list(out.glob("*_stats.json")))
    assert 0 < done < 32
    summary = stablerep.generate(prompts=prompts, out=out, **config)  # a single process goes on
    assert summary.images_made == 2 * (32 - done)
    stablerep.generate(prompts=prompts, out=tmp_path / "whole", **config)
    assert digests(out) == digests(tmp_path / "whole")
    assert not verify(out).problems
    shutil.rmtree(short, ignore_errors=True)
