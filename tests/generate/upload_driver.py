"""A run of two small shards to a URL, without a model; and, as a program, such runs killed at each step.

    python upload_driver.py FOLDER

A child a file operation, in staging or remotely, is killed just before it, or with half a file uploaded; each in a new
folder below FOLDER. Each run is then brought to its end by a child that nobody disturbs. Prints how many were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path

from stablerep import shards, storage
from stablerep.generate.shard_writer import open_writer
from tests import shelf  # noqa: F401, shelf://

SHARDS = 2
CONFIG = {"num_images_per_prompt": 2, "prompts_per_shard": 1, "seed": 7}
FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "shelf.half"}


def sample(shard: int) -> shards.Sample:
    pictures = [shards.Picture(index, bytes([shard, index]) * 500, {"reason": ""}) for index in range(2)]
    return shards.Sample(shard, f"prompt {shard}", "jpg", pictures)


def run(url: str, staging: Path, again: Collection[int] = (), config: dict[str, int] = CONFIG) -> list[int]:
    """Paint what is missing, as a job does; the shards that were."""
    out = storage.place(url)
    shards.start_dataset(out, config, {"num_prompts": SHARDS})
    painted = []
    with open_writer(out, staging) as writer:
        for shard in writer.missing(SHARDS, again):
            writer.write(shard, [sample(shard)], images_per_prompt=2)
            painted.append(shard)
        writer.flush()
    storage.write(out / "summary.json", "{}")
    return painted


def child(folder: Path, die_at: int | None = None) -> bool:
    """Whether a run in a child was killed; one that fails ends this program."""
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return True
        if status:
            raise SystemExit(f"a run ended with status {status}")
        return False
    seen = 0

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event in FILE_OPERATIONS and str(args[0]).startswith(str(folder)):
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(count)
    status = 1
    try:
        run(f"shelf://{folder}/remote", folder / "staging")
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    killed = 0
    while child(Path(sys.argv[1]) / str(killed), die_at=killed):
        assert not child(Path(sys.argv[1]) / str(killed))
        killed += 1
    sys.stdout.write(str(killed))
