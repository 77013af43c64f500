"""What a call of generate() did: one line for the person, summary.json for programs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from stablerep.storage import Folder

NON_FINITE = "non-finite"  # the reasons that leave a picture out whatever the policy
UNREADABLE = "unreadable prompt"


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

    def __str__(self) -> str:
        return "\n".join(map(str, self.runs))
