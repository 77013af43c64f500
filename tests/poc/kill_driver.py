"""Forks proofs of concept and kills them: importing what they need takes seconds, and is done once.

    python kill_driver.py '{"prompts": ..., "real": ..., ...}' WHOLE KILLED MOMENTS

WHOLE is made by one that nobody disturbs, which counts its file operations (open, rename, remove, mkdir) in the folder.
In KILLED as many processes as MOMENTS are killed one after the other, each before another of these operations, spread
over all of them; then one is left alone. Prints how many were killed, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from stablerep.config import from_fields
from stablerep.poc.config import PocConfig
from stablerep.poc.run import run_poc

FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir"}


def fork(fields: dict[str, Any], out: Path, die_at: int | None = None) -> int | None:
    """Run in a child; None if it was killed, else the number of its file operations."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        seen, status = 0, 1

        def count(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in FILE_OPERATIONS and str(args[0]).startswith(str(out)):
                if seen == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(count)
        try:
            run_poc(from_fields(PocConfig, {**fields, "out": out}))
            os.write(writer, str(seen).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"it ended with status {status}")
    return int(text)


def main(fields: dict[str, Any], whole: Path, killed: Path, moments: int) -> None:
    torch.set_num_threads(1)  # a fork of a process with worker threads would wait for them for ever
    operations = fork(fields, whole)
    assert operations is not None
    deaths = [fork(fields, killed, operations * moment // (moments + 1)) for moment in range(1, moments + 1)]
    if fork(fields, killed) is None:
        raise SystemExit("one that nobody disturbed was killed")
    json.dump({"killed": deaths.count(None), "operations": operations}, sys.stdout)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
