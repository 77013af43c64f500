"""Paint the prompts of one shard: screening, and new pictures for those that are not kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from stablerep.generate import screen
from stablerep.generate.config import GenerateConfig
from stablerep.generate.painter import (
    Brought,
    Painter,
    Pairs,
    Picture,
    Told,
    bring,
    encode_prompts,
    fitting,
    paint_batch,
)
from stablerep.generate.summary import NON_FINITE, UNREADABLE
from stablerep.prompts import Prompt


@dataclass(frozen=True)
class Painted:
    """One picture and the verdict on it."""

    index: int
    pixels: Picture | None  # None: not kept
    reason: str  # what is wrong with it; "" if nothing is
    mark: screen.Mark | None  # None: the prompt cannot be read


@dataclass
class _Candidates:
    """The pictures of one prompt so far, in the order of their indices."""

    pixels: list[Picture] = field(default_factory=list)
    marks: list[screen.Mark] = field(default_factory=list)

    def judged(self, config: GenerateConfig) -> list[tuple[bool, str]]:
        """For each picture, whether it is kept and what is wrong with it."""
        if config.screen == "keep":
            reasons = ["" if mark.finite else NON_FINITE for mark in self.marks]
        else:
            limits = config.flat_below, config.duplicate_within, config.clip_score_below, config.nsfw_above
            reasons = screen.judge(self.marks, *limits)
        return [(not why or (config.screen != "drop" and why != NON_FINITE), why) for why in reasons]


def paint_shard(
    painter: Painter, prompts: Sequence[Prompt], told: Callable[[int], None] = lambda painted: None
) -> list[list[Painted]]:
    """The pictures of each prompt, kept or not; told hears after each batch how many were painted.

    A pure function of the config, the prompts and the weights; of the batch size only by the rounding of the engine,
    which may move single pixels by one level. A prompt that cannot be read has K pictures that are not kept.
    """
    config, k = painter.config, painter.config.num_images_per_prompt
    encoded = encode_prompts(painter, prompts)
    candidates = {row: _Candidates() for row in range(len(prompts)) if row not in encoded.problems}
    lacking = dict.fromkeys(candidates, k)
    for _ in range(1 + config.screen_retries):
        wanted = [(row, len(candidates[row].marks) + i) for row, count in lacking.items() for i in range(count)]
        for take, (pixels, marks) in _batches(painter, encoded, wanted):
            for (row, _), picture, mark in zip(take, pixels, marks, strict=True):
                candidates[row].pixels.append(picture)
                candidates[row].marks.append(mark)
            told(sum(len(each.marks) for each in candidates.values()))
        kept = {row: sum(keep for keep, _ in each.judged(config)) for row, each in candidates.items()}
        lacking = {row: k - count for row, count in kept.items() if count < k}
        if not lacking:
            break
    unreadable = [Painted(index, None, UNREADABLE, None) for index in range(k)]
    return [_verdicts(candidates[row], config) if row in candidates else unreadable for row in range(len(prompts))]


def _verdicts(candidates: _Candidates, config: GenerateConfig) -> list[Painted]:
    judged = candidates.judged(config)
    return [
        Painted(index, pixels if keep else None, why, mark)
        for index, (pixels, mark, (keep, why)) in enumerate(
            zip(candidates.pixels, candidates.marks, judged, strict=True)
        )
    ]


def _batches(painter: Painter, told: Told, wanted: Pairs) -> Iterator[tuple[Pairs, Brought]]:
    """The wanted pictures in order, batch by batch, on the host.

    Where a device paints, the next batch is launched before one is waited for.
    """
    ahead: deque[tuple[Pairs, Callable[[], Brought]]] = deque()
    most_ahead = 0 if painter.overlap is None else 1
    for launched in fitting(painter, partial(_launch, painter, told), wanted):
        ahead.append(launched)
        if len(ahead) > most_ahead:
            yield _wait(*ahead.popleft())
    while ahead:
        yield _wait(*ahead.popleft())


def _launch(painter: Painter, told: Told, take: Pairs) -> Callable[[], Brought]:
    """Begin to paint a batch; what it returns waits for the pictures."""
    if painter.overlap is not None:
        return painter.overlap(partial(paint_batch, painter, told, take)).result
    brought = bring(paint_batch(painter, told, take), list)
    return lambda: brought


def _wait(take: Pairs, brought: Callable[[], Brought]) -> tuple[Pairs, Brought]:
    return take, brought()  # the only place where painting waits for the device
