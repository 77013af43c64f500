"""What a call of generate() did: the progress line, one line for the person at the end, summary.json for programs."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from stablerep import shards
from stablerep.runlog import Progress
from stablerep.storage import Folder

NON_FINITE = "non-finite"  # the reasons that leave a picture out whatever the policy
UNREADABLE = "unreadable prompt"


@dataclass
class RunProgress:
    """How far a run is, and what became of its pictures, in this call."""

    bar: Progress
    images_per_prompt: int
    completed: int  # pictures of blocks that are painted, now or by earlier calls
    workers: int = 1  # at work now
    most_workers: int = 1  # that should be
    waited: float = 0.0  # seconds that painting stood still for encoding and writing, summed over workers
    kept: int = 0
    rejected: int = 0
    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def wait_share(self) -> float:
        return self.waited / max(self.seconds * self.most_workers, 1e-9)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a block of code, in which all workers stand still."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.waited += (time.perf_counter() - since) * self.most_workers

    def add_painted(self, prompts: int) -> None:
        """Count a block of so many prompts as painted."""
        self.completed += self.images_per_prompt * prompts
        self.show()

    def add_written(self, samples: Sequence[shards.Sample]) -> None:
        """Count what became of the pictures of a block."""
        pictures = [picture for sample in samples for picture in sample.pictures]
        kept = sum(bool(picture.data) for picture in pictures)
        self.kept += kept
        self.rejected += len(pictures) - kept

    def show(self, painting: int = 0) -> None:
        """Update the progress line; painting counts the pictures of blocks at work."""
        workers = f"{self.workers} of {self.most_workers} workers" if self.most_workers > 1 else ""
        rejected = f"{self.rejected} not kept" if self.rejected else ""
        waited = f"{self.wait_share:.0%} waiting for writing" if self.wait_share >= 0.01 else ""
        self.bar.update(self.completed + painting, ", ".join(filter(None, (workers, rejected, waited))))


@dataclass(frozen=True)
class GenerateSummary:
    """What is in the folder now, and what this call added."""

    out: Folder
    images: int  # kept, in the folder now
    images_made: int  # kept, by this call
    seconds: float  # from the first prompt to the last shard, without opening the model
    wait_share: float  # of these seconds, those that painting stood still for encoding and writing
    prompts: int
    prompts_empty: int
    prompts_repeated: int  # whose caption an earlier row has too, by prompts.caption_key
    prompts_cut: int  # longer than the tokenizer takes
    prompts_unreadable: int  # no text, or none that the text encoder takes: no pictures
    prompts_short: int  # with fewer than K pictures, because others were not kept
    screen: str
    screened: dict[str, int]  # pictures in the folder by what is wrong with them, kept (flag) or not
    scores: dict[str, float]  # mean clip_score and nsfw_score of the kept pictures that have one
    device: str
    engine: str
    batch_size: int  # what fitted into memory in the end
    workers: int = 1  # processes that painted
    images_due: int = 0  # K for each prompt
    max_rejected: float = 1.0

    @property
    def problem(self) -> str | None:
        """Why the run has failed, though its shards are there: nothing, or too little, was kept."""
        lost = self.images_due - self.images
        if not lost or (self.images and lost <= self.max_rejected * self.images_due):
            return None
        reasons = dict(self.screened) | ({UNREADABLE: self.prompts_unreadable} if self.prompts_unreadable else {})
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        mend = f"; {NON_FINITE} is the model's: try --dtype fp32 or another --model" if NON_FINITE in reasons else ""
        if not self.images:
            return f"no picture was kept in {self.out} ({why}){mend}"
        return (
            f"--max-rejected {self.max_rejected:.4g}: {lost / self.images_due:.4g} of the pictures in {self.out} are "
            f"lost, {lost} of {self.images_due} ({why}){mend}"
        )

    @property
    def images_per_second(self) -> float:
        return self.images_made / self.seconds if self.images_made else 0.0

    def as_json(self) -> str:
        values: dict[str, Any] = asdict(self) | {"images_per_second": round(self.images_per_second, 3)}
        values |= {"seconds": round(self.seconds, 3), "wait_share": round(self.wait_share, 4)}
        del values["out"]
        return json.dumps(values, indent=1) + "\n"

    def __str__(self) -> str:
        made = f"{self.images_made} made"
        if self.images_made:
            made += f" in {self.seconds:.1f} s, {self.images_per_second:.1f} images/s"
        if self.wait_share >= 0.01:
            made += f", {self.wait_share:.0%} of it waiting for writing"
        notes = [
            f"{count} prompts {what}"
            for count, what in (
                (self.prompts_empty, "empty, painted without text"),
                (self.prompts_repeated, "repeat the caption of an earlier row"),
                (self.prompts_cut, "longer than the tokenizer takes, cut"),
                (self.prompts_unreadable, "unreadable, left out"),
                (self.prompts_short, "with fewer pictures than asked for (--screen-retries)"),
            )
            if count
        ]
        if self.screened:
            found = ", ".join(f"{count} {reason}" for reason, count in self.screened.items())
            wrong = sum(self.screened.values())
            left_out = wrong if self.screen == "drop" else self.screened.get(NON_FINITE, 0)
            share = wrong / max(self.images + left_out, 1)
            notes.append(f"screening ({self.screen}): {found}, {share:.1%} of what was painted")
        notes += [f"mean {name} {mean:.4g}" for name, mean in self.scores.items()]
        return "; ".join([f"{self.images} images in {self.out} ({made})", *notes])


def reasons_in(stats: list[dict[str, Any]]) -> Counter[str]:
    """What is wrong with the pictures of all shards, from their stats."""
    reasons: Counter[str] = Counter()
    for each in stats:
        reasons.update(each["reasons"])
    return reasons


def mean_scores(stats: list[dict[str, Any]]) -> dict[str, float]:
    """The mean of each score over all shards, from their stats."""
    counts, sums = defaultdict[str, int](int), defaultdict[str, float](float)
    for each in stats:
        for name, (count, total) in each.get("scores", {}).items():
            counts[name] += count
            sums[name] += total
    return {name: round(sums[name] / counts[name], 4) for name in sorted(counts)}


@dataclass(frozen=True)
class SweepSummary:
    """What one call of generate() did with several guidance scales."""

    runs: tuple[GenerateSummary, ...]

    @property
    def problem(self) -> str | None:
        """As GenerateSummary.problem, of all runs that have one."""
        return "; ".join(filter(None, (run.problem for run in self.runs))) or None

    def __str__(self) -> str:
        return "\n".join(map(str, self.runs))
