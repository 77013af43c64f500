"""Imports and opens the model once, then forks painters and kills them: a fresh start each would take seconds.

    python kill_driver.py random|steps|shared '{"prompts": ..., "out": ..., ...}' TIMES SEED

random: TIMES kills, each after a random part of the time that an undisturbed run takes. Whenever a painter is done
before its end comes, the folder is kept aside and a new one is begun.
steps: a painter a file operation (open, rename, remove, mkdir) in the folder, killed just before it; each in a new
folder. TIMES and SEED do not matter.

shared: TIMES folders, each with three painters at once, of which one is killed after a random part of that time. The
others must paint all of it.

Every folder is then painted to its end by a painter that nobody disturbs. Prints one JSON object: the folders, and how
many painters were killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from stablerep import shards
from stablerep.generate import run, worker
from stablerep.generate.config import GenerateConfig
from stablerep.generate.pipeline import open_pipeline

FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir"}


def fork_painter(fields: dict[str, Any], out: Path, die_at: int | None = None) -> int:
    """Paint into out in a child; with die_at it kills itself before its file operation of that number."""
    child = os.fork()
    if child:
        return child
    seen = 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_OPERATIONS and str(args[0]).startswith(str(out)):
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    if die_at is not None:
        sys.addaudithook(count)
    status = 1
    try:
        summary = run.generate(GenerateConfig(**fields, out=out))
        with out.with_name(f"{out.name}.made").open("a") as file:
            file.write(f"{summary.images} {summary.images_made}\n")
        status = 0
    finally:
        os._exit(status)


def wait(child: int) -> bool:
    """Whether the painter was killed; a painter that fails is a failure of the test."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"a painter ended with status {status}")
    return False


def kill_at_random(fields: dict[str, Any], out: Path, times: int, seed: int) -> tuple[list[Path], int]:
    start = time.perf_counter()
    wait(fork_painter(fields, out / "timed"))
    seconds = time.perf_counter() - start
    chance = random.Random(seed)
    folders, killed = [out / "0"], 0
    while killed < times:
        child = fork_painter(fields, folders[-1])
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if wait(child):
            killed += 1
        else:
            folders.append(out / str(len(folders)))
    return folders, killed


def kill_at_each_step(fields: dict[str, Any], out: Path) -> tuple[list[Path], int]:
    folders: list[Path] = []
    while True:
        folders.append(out / str(len(folders)))
        if not wait(fork_painter(fields, folders[-1], die_at=len(folders) - 1)):
            return folders, len(folders) - 1


def kill_one_of_three(fields: dict[str, Any], out: Path, times: int, seed: int) -> tuple[list[Path], int]:
    start = time.perf_counter()
    wait(fork_painter(fields, out / "timed"))
    seconds = time.perf_counter() - start
    chance = random.Random(seed)
    folders, killed = [out / str(number) for number in range(times)], 0
    shards_due = len(shards.read_done(out / "timed"))
    for folder in folders:
        children = [fork_painter(fields, folder) for _ in range(3)]
        time.sleep(chance.uniform(0, seconds))
        os.kill(chance.choice(children), signal.SIGKILL)
        killed += sum(wait(child) for child in children)
        if len(shards.read_done(folder)) != shards_due or (folder / shards.CLAIMS).exists():
            raise SystemExit(f"{folder} is not done, or still claimed")
    return folders, killed


def main(mode: str, fields: dict[str, Any], times: int, seed: int) -> None:
    torch.set_num_threads(1)  # a fork of a process with worker threads would wait for them for ever
    out = Path(fields.pop("out"))
    fields["prompts"] = Path(fields["prompts"])
    pipeline = open_pipeline("default", torch.device("cpu"))
    worker.open_pipeline = lambda *_, **__: pipeline  # type: ignore[assignment]
    if mode == "steps":
        folders, killed = kill_at_each_step(fields, out)
    else:
        kill = kill_at_random if mode == "random" else kill_one_of_three
        folders, killed = kill(fields, out, times, seed)
    for folder in folders:
        if wait(fork_painter(fields, folder)):
            raise SystemExit("a painter that nobody disturbed was killed")
    json.dump({"folders": [str(folder) for folder in folders], "killed": killed}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
