"""Paint the prompts of one shard: batches that fit, screening, new pictures for those that are not kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stablerep import ops
from stablerep.config import UserError
from stablerep.generate import screen
from stablerep.generate.conditioning import Conditioning
from stablerep.generate.config import GenerateConfig
from stablerep.generate.diffusers_schedule import DiffusersSchedule
from stablerep.generate.engines import Engine
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.sampler import sample_decoded
from stablerep.generate.schedule import Schedule
from stablerep.generate.scores import Scorer
from stablerep.generate.settings import settings_of
from stablerep.generate.summary import NON_FINITE, UNREADABLE
from stablerep.prompts import Prompt

# The different negative prompts encoded, N rows, and of each prompt of a shard [P] which of them is its own.
Negatives = tuple[Conditioning, Tensor]

log = logging.getLogger("stablerep.generate")


@dataclass
class BatchSize:
    """How many pictures fit into the device's memory at once; learned once, for all shards of a run."""

    value: int

    def halve(self, device: torch.device, error: BaseException) -> None:
        """Say so and take half.

        Raises:
            UserError: one picture is too much already.
        """
        if self.value == 1:
            raise UserError(f"--batch-size 1: not even one picture fits into the memory of {device}") from error
        log.warning(
            "--batch-size %d does not fit into the memory of %s; going on with %d", self.value, device, self.value // 2
        )
        self.value //= 2
        if device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Painter:
    """What painting a shard needs and does not change, but for the batch size."""

    pipeline: Pipeline
    engine: Engine
    schedule: Schedule | DiffusersSchedule
    config: GenerateConfig
    batch_size: BatchSize
    scorer: Scorer = field(default_factory=Scorer)

    @property
    def device(self) -> torch.device:
        return self.schedule.timesteps.device


@dataclass(frozen=True)
class Painted:
    """One picture and the verdict on it."""

    index: int
    pixels: Tensor | None  # [H, W, 3] uint8 on the host; None: not kept
    reason: str  # what is wrong with it; "" if nothing is
    mark: screen.Mark | None  # None: the prompt cannot be read


@dataclass
class _Candidates:
    """The pictures of one prompt so far, in the order of their indices."""

    pixels: list[Tensor] = field(default_factory=list)
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
    conditioning, problems = _encode(painter.pipeline, prompts)
    texts = [settings_of(prompt, config).negative_prompt for prompt in prompts]
    negative = _encode_negatives(painter.pipeline, texts)
    for row, problem in problems.items():
        log.warning("--prompts row %d %s; its pictures are left out", prompts[row].id, problem)
    candidates = {row: _Candidates() for row in range(len(prompts)) if row not in problems}
    lacking = dict.fromkeys(candidates, k)
    for _ in range(1 + config.screen_retries):
        wanted = [(row, len(candidates[row].marks) + i) for row, count in lacking.items() for i in range(count)]
        for done, pixels, marks in _batches(painter, prompts, conditioning, negative, wanted):
            for (row, _), picture, mark in zip(done, pixels.cpu(), screen.split(marks.cpu()), strict=True):
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


def _batches(
    painter: Painter,
    prompts: Sequence[Prompt],
    conditioning: Conditioning,
    negative: Negatives,
    wanted: list[tuple[int, int]],
) -> Iterator[tuple[list[tuple[int, int]], Tensor, screen.Marks]]:
    """Paint (row, index) pairs in order, as many at once as fit: the pairs, pixels and marks, these on the device."""
    start = 0
    while start < len(wanted):
        take = wanted[start : start + painter.batch_size.value]
        try:
            pixels, marks = _batch(painter, prompts, conditioning, negative, take)
        except torch.OutOfMemoryError as error:
            painter.batch_size.halve(painter.device, error.with_traceback(None))  # its frames hold the batch
            continue
        start += len(take)
        yield take, pixels, marks


def _batch(
    painter: Painter,
    prompts: Sequence[Prompt],
    conditioning: Conditioning,
    negative: Negatives,
    take: list[tuple[int, int]],
) -> tuple[Tensor, screen.Marks]:
    config = painter.config
    rows, indices = torch.tensor(take).unbind(1)
    settings = [settings_of(prompts[row], config) for row, _ in take]
    negatives, row_of_negative = negative
    decoded = sample_decoded(
        painter.engine,
        painter.schedule,
        conditioning[rows.to(painter.device)],
        negatives[row_of_negative[rows].to(painter.device)],
        torch.tensor([prompts[row].id for row, _ in take]),
        indices,
        latent_shape=painter.pipeline.latent_shape,
        guidance_scale=[own.guidance_scale for own in settings],
        seed=[own.seed for own in settings],
        guidance_rescale=config.guidance_rescale,
    )
    pixels = ops.to_pixels(decoded, config.image_size)
    return pixels, painter.scorer.look(screen.look(decoded, pixels), pixels, [prompts[row].text for row, _ in take])


def _encode_negatives(pipeline: Pipeline, texts: Sequence[str]) -> Negatives:
    different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return pipeline.encode(list(different)), torch.tensor([different[text] for text in texts])


def _encode(pipeline: Pipeline, prompts: Sequence[Prompt]) -> tuple[Conditioning, dict[int, str]]:
    """A row a prompt, and by row why a prompt has none (its row is the empty text's).

    Raises:
        Exception: what the text encoder raises, if it does so for every prompt: then it is not the prompts.
    """
    problems = {row: prompt.problem for row, prompt in enumerate(prompts) if prompt.problem}
    texts = [prompt.text for prompt in prompts]
    try:
        return pipeline.encode(texts), problems
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tokenizers raise what they like; one by one shows whose fault it is
        for row, text in enumerate(texts):
            try:
                pipeline.encode([text])
            except Exception as its_error:
                problems[row] = (
                    f"cannot be encoded ({type(its_error).__name__}: {' '.join(str(its_error).split())[:120]})"
                )
        if len(problems) == len(texts):
            raise error
    return pipeline.encode(["" if row in problems else text for row, text in enumerate(texts)]), problems
