"""A check in a process of its own, which is ended with all that it started when its time is over.

After an illegal address CUDA answers nothing more in the process that met it, and a kernel that hangs never returns.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from benchmarks.checks import SEED, Numbers, Skip

Check = Callable[[], Numbers]

MOST_SECONDS = 180  # of one check
PRELOADED = ["torch", "triton", "numpy", "benchmarks.gpu_ops", "benchmarks.gpu_generate"]  # once, for all checks


@dataclass(frozen=True)
class Result:
    name: str
    status: str  # passed, failed or skipped
    seconds: float
    detail: str
    numbers: Numbers


def run_check(name: str, check: Check, most_seconds: float = MOST_SECONDS) -> Result:
    """The check's result; one that dies or takes longer has failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(name, check, sender), name=name)
    start = time.perf_counter()
    process.start()
    sender.close()
    try:
        if receiver.poll(most_seconds):
            return receiver.recv()
        detail = f"still ran after {most_seconds:.0f} s"
    except EOFError:
        process.join()
        detail = f"its process died (exit code {process.exitcode})"
    finally:
        _end(process)
    return Result(name, "failed", round(time.perf_counter() - start, 2), detail, {})


def _end(process: multiprocessing.process.BaseProcess) -> None:
    assert process.pid is not None
    with suppress(ProcessLookupError):  # none of its group is left
        os.killpg(process.pid, signal.SIGKILL)  # its own compilers and profilers too
    process.kill()  # where it had not yet begun, and had no group
    process.join()


def _in_process(name: str, check: Check, sender: Connection) -> None:
    os.setsid()
    start = time.perf_counter()
    torch.manual_seed(SEED)
    random.seed(SEED)
    try:
        status, detail, numbers = "passed", "", check()
    except Skip as skip:
        status, detail, numbers = "skipped", str(skip), {}
    except ModuleNotFoundError as error:
        ours = (error.name or "").startswith("stablerep")  # then it is our mistake
        status, detail, numbers = "failed" if ours else "skipped", f"{error.name} is not installed", {}
    except Exception as error:
        traceback.print_exc()
        text = str(error).strip().splitlines() or [""]
        status, detail, numbers = "failed", f"{type(error).__name__}: {text[0]}", {}
    sender.send(Result(name, status, round(time.perf_counter() - start, 2), detail, numbers))
