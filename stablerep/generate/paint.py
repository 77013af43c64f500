"""Paint the prompts of one shard: batches that fit, screening, new pictures for those that are not kept."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial

import torch
from torch import Tensor

from stablerep import ops
from stablerep.config import UserError
from stablerep.generate import screen
from stablerep.generate.conditioning import Conditioning
from stablerep.generate.config import GenerateConfig
from stablerep.generate.diffusers_schedule import DiffusersSchedule
from stablerep.generate.encode import Encode, Encoded, open_encode
from stablerep.generate.engines import Engine
from stablerep.generate.graphed import Graphs, Tensors, why_not
from stablerep.generate.noise import picture_noise
from stablerep.generate.overlap import Overlap
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.sampler import denoise, is_guided, scales
from stablerep.generate.schedule import Schedule
from stablerep.generate.scores import Scorer
from stablerep.generate.settings import settings_of
from stablerep.generate.summary import NON_FINITE, UNREADABLE
from stablerep.generate.transfer import down, up
from stablerep.prompts import Prompt

# The different negative prompts encoded, N rows, and of each prompt of a shard [P] which of them is its own.
Negatives = tuple[Conditioning, Tensor]
Pairs = list[tuple[int, int]]  # which pictures: the row of the prompt, and the index
Picture = Tensor | Encoded  # pixels [H, W, 3] uint8 on the host, or a file where the device is not the host
Brought = tuple[list[Picture], list[screen.Mark]]  # a batch

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

    @cached_property
    def graphs(self) -> Graphs | None:
        """None on the CPU, where there is nothing to capture."""
        return Graphs(self.engine, why_not(self.engine, self.schedule)) if self.device.type == "cuda" else None

    @cached_property
    def overlap(self) -> Overlap[Brought] | None:
        """None on the CPU, where painting has all cores; a shard is encoded when it is written."""
        if self.device.type != "cuda":
            return None
        encode = open_encode(self.config.jpeg_encoder, self.config.image_format, self.device)
        return Overlap(self.device, lambda outputs: _bring(outputs, encode))

    def make_room(self, error: torch.OutOfMemoryError) -> None:
        """Give back what the next batch can do without, or take smaller batches."""
        if self.graphs is None or not self.graphs.give_back():
            self.batch_size.halve(self.device, error)


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
    conditioning, problems = _encode(painter.pipeline, prompts)
    texts = [settings_of(prompt, config).negative_prompt for prompt in prompts]
    negative = _encode_negatives(painter.pipeline, texts)
    for row, problem in problems.items():
        log.warning("--prompts row %d %s; its pictures are left out", prompts[row].id, problem)
    candidates = {row: _Candidates() for row in range(len(prompts)) if row not in problems}
    lacking = dict.fromkeys(candidates, k)
    paint = partial(_paint, painter, prompts, conditioning, negative)
    for _ in range(1 + config.screen_retries):
        wanted = [(row, len(candidates[row].marks) + i) for row, count in lacking.items() for i in range(count)]
        for done, pixels, marks in _batches(painter, paint, wanted):
            for (row, _), picture, mark in zip(done, pixels, marks, strict=True):
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
    painter: Painter, paint: Callable[[Pairs], Tensors], wanted: Pairs
) -> Iterator[tuple[Pairs, list[Picture], list[screen.Mark]]]:
    """Paint pictures in order, as many at once as fit: which, the pictures, and their marks, these on the host.

    Where a device paints, the next batch is launched before one is waited for.
    """
    launched: deque[tuple[Pairs, Callable[[], Brought]]] = deque()
    start = 0
    while start < len(wanted) or launched:
        if start < len(wanted):
            take = wanted[start : start + painter.batch_size.value]
            try:
                launched.append((take, _launch(painter, partial(paint, take))))
            except torch.OutOfMemoryError as error:
                painter.make_room(error.with_traceback(None))  # its frames hold the batch
                continue
            start += len(take)
            if painter.overlap is not None and len(launched) == 1 and start < len(wanted):
                continue
        take, brought = launched.popleft()
        yield take, *brought()  # the only place where painting waits for the device


def _launch(painter: Painter, paint: Callable[[], Tensors]) -> Callable[[], Brought]:
    """Begin to paint a batch; what it returns waits for the pictures."""
    if painter.overlap is not None:
        return painter.overlap(paint).result
    brought = _bring(paint(), list)
    return lambda: brought


def _paint(
    painter: Painter, prompts: Sequence[Prompt], conditioning: Conditioning, negative: Negatives, take: Pairs
) -> Tensors:
    """Pixels and marks of a batch, on the device. Asks it nothing."""
    config, device = painter.config, painter.device
    settings = [settings_of(prompts[row], config) for row, _ in take]
    seeds, guidance = [own.seed for own in settings], [own.guidance_scale for own in settings]
    negatives, row_of_negative = negative
    rows, indices = torch.tensor(take).unbind(1)
    ids = torch.tensor([prompts[row].id for row, _ in take])
    rows, negative_rows, ids, indices = up(torch.stack([rows, row_of_negative[rows], ids, indices]), device)

    def draw(number: int) -> Tensor:
        return picture_noise(seeds, ids, indices, painter.pipeline.latent_shape, device, draw=number)

    guided = is_guided(guidance)
    inputs = {"scale": scales(guidance, len(take), device), "noise": draw(0)}
    for half, encoded in (("told", conditioning[rows]), ("negative", negatives[negative_rows])):
        inputs |= {f"{half} {name}": value for name, value in encoded.inputs.items()}

    def paint(engine: Engine, given: Tensors) -> Tensors:
        told, against = (
            Conditioning({name.split()[1]: value for name, value in given.items() if name.startswith(half)})
            for half in ("told ", "negative ")
        )

        def drawn(number: int) -> Tensor:
            return draw(number) if number else given["noise"]

        decoded = denoise(
            engine, painter.schedule, told, against, drawn, given["scale"], guided, config.guidance_rescale
        )
        pixels = ops.to_pixels(decoded, config.image_size)
        return {"pixels": pixels, **vars(screen.look(decoded, pixels))}

    outputs = painter.graphs(paint, inputs, key=guided) if painter.graphs is not None else paint(painter.engine, inputs)
    pixels = outputs.pop("pixels")
    marks = painter.scorer.look(screen.Marks(**outputs), pixels, [prompts[row].text for row, _ in take])
    return {"pixels": pixels, **vars(marks)}


def _bring(outputs: Tensors, encode: Encode | Callable[[Tensor], list[Tensor]]) -> Brought:
    """The pictures of a batch and their marks, on the host."""
    pictures = encode(outputs["pixels"])
    names = [each.name for each in fields(screen.Marks)]
    marks = screen.Marks(*down([outputs[name] for name in names]))
    return list(pictures), screen.split(marks)


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
