"""What a run has done so far: for the progress line and the summary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from stablerep import shards
from stablerep.runlog import Progress


@dataclass
class Tally:
    """One run's numbers, of this call."""

    bar: Progress
    images_per_prompt: int
    completed: int  # pictures of blocks that are painted, now or by earlier calls
    workers: int = 1  # at work now
    of_workers: int = 1  # that should be
    waited: float = 0.0  # seconds that painting stood still for encoding and writing, summed over workers
    kept: int = 0
    rejected: int = 0
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def wait_share(self) -> float:
        return self.waited / max(self.seconds * self.of_workers, 1e-9)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a block of code, in which all workers stand still."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited += (time.perf_counter() - start) * self.of_workers

    def painted(self, prompts: int) -> None:
        """Count a block as painted."""
        self.completed += self.images_per_prompt * prompts
        self.show()

    def written(self, samples: Sequence[shards.Sample]) -> None:
        """Count what became of the pictures of a block."""
        pictures = [picture for sample in samples for picture in sample.pictures]
        kept = sum(bool(picture.data) for picture in pictures)
        self.kept += kept
        self.rejected += len(pictures) - kept

    def show(self, painting: int = 0) -> None:
        """Say how far the run is; painting counts the pictures of blocks at work."""
        workers = f"{self.workers} of {self.of_workers} workers" if self.of_workers > 1 else ""
        rejected = f"{self.rejected} not kept" if self.rejected else ""
        waited = f"{self.wait_share:.0%} waiting for writing" if self.wait_share >= 0.01 else ""
        self.bar.update(self.completed + painting, ", ".join(filter(None, (workers, rejected, waited))))
