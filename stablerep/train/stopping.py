"""Ctrl-C and SIGTERM: the step is finished and a checkpoint written before the process leaves."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed as dist

from stablerep import distributed

# Under torchrun a Ctrl-C comes twice: from the terminal, and again from torchrun, which has got it too.
ONE_PRESS_SECONDS = 2.0

log = logging.getLogger("stablerep.train")


class Stopped(SystemExit):
    """A run that was asked to stop has written its checkpoint; the same command goes on from there.

    The process leaves with 0 where SIGTERM asked: a scheduler that takes a machine away is obeyed, nothing has failed.
    """

    def __init__(self, by: int, step: int) -> None:
        super().__init__(0 if by == signal.SIGTERM else 128 + by)
        self.by, self.step = by, step  # the signal, and the steps that are saved


class StopRequest:
    """Whether this run was asked to stop; agreed_on gives every rank the same answer at the same step."""

    def __init__(self) -> None:
        self.signal, self._at = 0, 0.0
        # On the host: a flag on the device would have to be waited for. A group of its own: it must not queue behind
        # gradients, and CPU tensors do not travel over NCCL.
        self._group: Any = dist.new_group(backend="gloo") if distributed.world_size() > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int64)
        self._under_way: dist.Work | None = None

    def agreed_on(self) -> int:  # the signal, or 0
        """To be called once a step by every rank. On several ranks the answer is of the step before.

        What was asked a step ago has long been exchanged, so nobody waits: neither for the device, nor, but by a rank
        that is a whole step ahead, for the others.
        """
        if self._group is None:
            return self.signal
        if self._under_way is not None:
            self._under_way.wait()
        if agreed := int(self._flag):
            return agreed
        self._flag.fill_(self.signal)
        self._under_way = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return 0

    def close(self) -> None:
        """At the end of the last step, on every rank: none leaves while another still exchanges."""
        if self._under_way is not None:
            self._under_way.wait()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal == signal.SIGINT == number and now - self._at > ONE_PRESS_SECONDS:
            raise KeyboardInterrupt
        if not self.signal:
            self._at = now
            if distributed.rank() == 0:
                again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
                log.info("%s: finishing the step and saving%s", signal.Signals(number).name, again)
        self.signal = self.signal or number


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Take SIGINT and SIGTERM as a request to stop, where this is the main thread; the handlers before come back."""
    request = StopRequest()
    before = {}
    if threading.current_thread() is threading.main_thread():  # signals reach no other
        before = {number: signal.signal(number, request.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
        request.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
