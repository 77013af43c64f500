"""What each step took, in seconds and in energy, over all the times that it was stopped and gone on with."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch

from stablerep import atomic

T = TypeVar("T")
BEAT_SECONDS = 2.0  # what a kill may cost the account of a step
JOULES_PER_KWH = 3.6e6

log = logging.getLogger("stablerep.poc")


@dataclass
class Entry:
    kind: str  # paint, train, evaluate, adapt
    images: int
    seconds: float = 0.0
    kwh: float | None = None
    done: bool = False


class Ledger:
    """The account of a folder, ledger.json. A step that is done keeps what it took, however often it is asked again."""

    def __init__(self, path: Path, watts: float | None, device: torch.device) -> None:
        self._path, self._watts = path, watts
        self._joules = None if watts is not None else energy_counter(device)
        self.entries: dict[str, Entry] = {}
        if path.exists():
            self.entries = {name: Entry(**fields) for name, fields in json.loads(path.read_text()).items()}

    def run(self, name: str, kind: str, images: int, work: Callable[[], T]) -> T:
        entry = self.entries.setdefault(name, Entry(kind, images))
        if entry.done:  # the work returns at once what is there
            return work()
        with self._counted(entry):
            result = work()
        entry.done = True
        self._write()
        return result

    def seconds(self, name: str) -> float:
        return self.entries[name].seconds

    @contextmanager
    def _counted(self, entry: Entry) -> Iterator[None]:
        """Count the time of a block, and write it down every few seconds: a kill leaves no time to do so."""
        before, kwh_before = entry.seconds, entry.kwh or 0.0
        start, joules = time.perf_counter(), self._joules() if self._joules else 0.0
        ended = threading.Event()

        def count() -> None:
            entry.seconds = round(before + time.perf_counter() - start, 2)
            if self._watts is not None:
                entry.kwh = round(entry.seconds * self._watts / JOULES_PER_KWH, 9)
            elif self._joules:
                entry.kwh = round(kwh_before + (self._joules() - joules) / JOULES_PER_KWH, 9)

        def beat() -> None:
            while not ended.wait(BEAT_SECONDS):
                count()
                self._write()

        thread = threading.Thread(target=beat, name="ledger", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            count()
            self._write()

    def _write(self) -> None:
        text = json.dumps({name: asdict(entry) for name, entry in self.entries.items()}, indent=1)
        atomic.write(self._path, text + "\n")


def energy_counter(device: torch.device) -> Callable[[], float] | None:
    """Joules that a GPU has drawn since its driver was loaded, by NVML; None on a CPU, or where it does not count."""
    if device.type != "cuda":
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        log.warning("no energy is reported (NVML: %s); give --watts", error)
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
