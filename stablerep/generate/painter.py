"""From the prompts of a shard to its pictures: encoding, batches that fit, screening, and new pictures for bad ones."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from stablerep import ops
from stablerep.config import UserError
from stablerep.engines import Engine
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.select import open_engine
from stablerep.engines.store import store_at
from stablerep.engines.torch import torch_out_of_memory
from stablerep.generate import screen
from stablerep.generate.config import GenerateConfig, is_guided
from stablerep.generate.cuda import GraphCache, StreamOverlap, download, upload, upload_floats
from stablerep.generate.denoise import BatchInputs, Schedule, denoise, picture_noise
from stablerep.generate.encode import EncodedPicture, open_encode
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.schedulers import open_schedule
from stablerep.generate.scorers import Scorer, open_scorer
from stablerep.generate.screen import BatchQuality, PictureQuality
from stablerep.generate.summary import NON_FINITE, UNREADABLE
from stablerep.prompts import Prompt

PixelsOrFile = Tensor | EncodedPicture  # [H, W, 3] uint8 on the host, or a file where the device is not the host

T = TypeVar("T")
log = logging.getLogger("stablerep.generate")


@dataclass(frozen=True)
class PictureId:
    """A picture to be painted."""

    row: int  # of its prompt among those encoded
    index: int


@dataclass(frozen=True)
class EncodedPrompts:
    """P prompts, encoded."""

    prompts: Sequence[Prompt]
    conditioning: Conditioning  # P rows
    negative: Conditioning  # a row for each different negative prompt
    negative_rows: Tensor  # [P] int64 on the host: which of them is a prompt's own
    problems: dict[int, str]  # by row, why a prompt has no encoding; its row is the empty text's


@dataclass(frozen=True)
class PaintedBatch:
    """B pictures on the device."""

    pixels: Tensor  # [B, H, W, 3] uint8
    quality: BatchQuality

    def tensors(self) -> list[Tensor]:
        return [self.pixels, *self.quality.tensors()]

    def map(self, function: Callable[[Tensor], Tensor]) -> PaintedBatch:
        return PaintedBatch(function(self.pixels), self.quality.map(function))


@dataclass(frozen=True)
class HostBatch:
    """B pictures on the host."""

    pictures: Sequence[PixelsOrFile]
    quality: Sequence[PictureQuality]


@dataclass(frozen=True)
class PaintedPicture:
    """One picture and the verdict on it."""

    index: int
    pixels: PixelsOrFile | None  # None: not kept
    reason: str  # what is wrong with it; "" if nothing is
    quality: PictureQuality | None  # None: the prompt cannot be read


@dataclass
class BatchSize:
    """How many pictures fit into the device's memory at once; learned once, for all shards of a run."""

    value: int

    def halve(self, device: torch.device, error: BaseException) -> None:
        """Log it and take half.

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
    """What painting needs and does not change, but for the batch size."""

    pipeline: Pipeline
    engine: Engine
    schedule: Schedule
    config: GenerateConfig
    batch_size: BatchSize
    scorer: Scorer = field(default_factory=Scorer)

    @property
    def device(self) -> torch.device:
        return self.schedule.timesteps.device

    @cached_property
    def graphs(self) -> GraphCache | None:
        """None on the CPU, where there is nothing to capture."""
        return GraphCache(self.engine, self.why_not_capturable) if self.device.type == "cuda" else None

    @property
    def why_not_capturable(self) -> str | None:
        """Why batches cannot be CUDA graphs, as far as that is known before trying."""
        return self.schedule.why_not_capturable or self.engine.why_not_capturable

    @cached_property
    def overlap(self) -> StreamOverlap[PaintedBatch, HostBatch] | None:
        """None on the CPU, where painting has all cores; a shard is encoded when it is written."""
        if self.device.type != "cuda":
            return None
        encode = open_encode(self.config.jpeg_encoder, self.config.image_format, self.device)
        return StreamOverlap(self.device, partial(download_batch, encode=encode))

    def make_room(self, error: torch.OutOfMemoryError) -> None:
        """Free what the next batch can do without, or take smaller batches."""
        if self.graphs is None or not self.graphs.free_memory():
            self.batch_size.halve(self.device, error)


def open_painter(config: GenerateConfig, pipeline: Pipeline, device: torch.device, *, guided: bool) -> Painter:
    """Get ready for a run with one guidance scale; guided, if any of its prompts is.

    Raises:
        UserError: its scheduler, engine or scorers cannot run here.
    """
    schedule = open_schedule(config.scheduler, pipeline.scheduler_config, config.num_inference_steps, device)
    engine = open_engine(
        config.engine,
        pipeline,
        store_at(config.engine_dir),
        config.batch_size,
        guided=guided and not pipeline.embeds_guidance,
        compiled=config.compile,
    )
    return Painter(pipeline, engine, schedule, config, BatchSize(config.batch_size), open_scorer(config, device))


def paint_shard(
    painter: Painter, prompts: Sequence[Prompt], on_progress: Callable[[int], None] = lambda painted: None
) -> list[list[PaintedPicture]]:
    """The pictures of each prompt, kept or not; on_progress gets after each batch how many were painted.

    A pure function of the config, the prompts and the weights; of the batch size only by the rounding of the engine,
    which may move single pixels by one level. A prompt that cannot be read has K pictures that are not kept.
    """
    config, k = painter.config, painter.config.num_images_per_prompt
    encoded = encode_prompts(painter, prompts)
    candidates = {row: _Candidates(config) for row in range(len(prompts)) if row not in encoded.problems}
    lacking = dict.fromkeys(candidates, k)
    for _ in range(1 + config.screen_retries):
        wanted = [PictureId(row, candidates[row].count + i) for row, count in lacking.items() for i in range(count)]
        remaining = iter(wanted)
        for batch in _host_batches(painter, encoded, wanted):
            for picture, quality in zip(batch.pictures, batch.quality, strict=True):
                candidates[next(remaining).row].add(picture, quality)
            on_progress(sum(each.count for each in candidates.values()))
        kept = {row: sum(keep for keep, _ in each.verdicts()) for row, each in candidates.items()}
        lacking = {row: k - count for row, count in kept.items() if count < k}
        if not lacking:
            break
    unreadable = [PaintedPicture(index, None, UNREADABLE, None) for index in range(k)]
    return [candidates[row].painted() if row in candidates else unreadable for row in range(len(prompts))]


class _Candidates:
    """The pictures of one prompt so far, in the order of their indices."""

    def __init__(self, config: GenerateConfig) -> None:
        self._drops, self._limits = config.screen == "drop", screen.limits_of(config)
        self._pictures: list[PixelsOrFile] = []
        self._quality: list[PictureQuality] = []

    @property
    def count(self) -> int:
        return len(self._pictures)

    def add(self, picture: PixelsOrFile, quality: PictureQuality) -> None:
        self._pictures.append(picture)
        self._quality.append(quality)

    def verdicts(self) -> list[tuple[bool, str]]:
        """For each picture, whether it is kept and what is wrong with it."""
        reasons = screen.judge(self._quality, self._limits)
        return [(not reason or (not self._drops and reason != NON_FINITE), reason) for reason in reasons]

    def painted(self) -> list[PaintedPicture]:
        return [
            PaintedPicture(index, picture if keep else None, reason, quality)
            for index, (picture, quality, (keep, reason)) in enumerate(
                zip(self._pictures, self._quality, self.verdicts(), strict=True)
            )
        ]


def encode_prompts(painter: Painter, prompts: Sequence[Prompt]) -> EncodedPrompts:
    """Encode prompts and their negative ones; the rows of those that cannot be are named in a line each.

    Raises:
        Exception: what the text encoder raises, if it does so for every prompt: then it is not the prompts.
    """
    conditioning, problems = _encode_texts(painter.pipeline, prompts)
    for row, problem in problems.items():
        log.warning("--prompts row %d %s; its pictures are left out", prompts[row].id, problem)
    negatives = [painter.config.settings_of(prompt).negative_prompt for prompt in prompts]
    different = {negative: number for number, negative in enumerate(dict.fromkeys(negatives))}
    negative_rows = torch.tensor([different[negative] for negative in negatives])
    negative = painter.pipeline.encode_negative(list(different))
    return EncodedPrompts(prompts, conditioning, negative, negative_rows, problems)


def _encode_texts(pipeline: Pipeline, prompts: Sequence[Prompt]) -> tuple[Conditioning, dict[int, str]]:
    """A row a prompt, and by row why a prompt has none."""
    problems = {row: prompt.problem for row, prompt in enumerate(prompts) if prompt.problem}
    texts = [prompt.text for prompt in prompts]
    try:
        with torch_out_of_memory():
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


def fitting_batches(painter: Painter, paint: Callable[[list[PictureId]], T], wanted: list[PictureId]) -> Iterator[T]:
    """What paint makes of the wanted pictures in order, as many at once as fit."""
    start = 0
    while start < len(wanted):
        batch = wanted[start : start + painter.batch_size.value]
        try:
            with torch_out_of_memory():  # what is not the engine's: noise, latents, pixels
                painted = paint(batch)
        except torch.OutOfMemoryError as error:
            painter.make_room(error.with_traceback(None))  # its frames hold the batch
            continue
        start += len(batch)
        yield painted


def _host_batches(painter: Painter, encoded: EncodedPrompts, wanted: list[PictureId]) -> Iterator[HostBatch]:
    """The wanted pictures in order, batch by batch, on the host.

    Where a device paints, the next batch is launched before one is waited for.
    """

    def launch(batch: list[PictureId]) -> Callable[[], HostBatch]:
        paint = partial(paint_batch, painter, encoded, batch)
        if painter.overlap is not None:
            return painter.overlap.submit(paint).result
        painted = download_batch(paint(), encode=list)
        return lambda: painted

    launched: deque[Callable[[], HostBatch]] = deque()
    most_ahead = 0 if painter.overlap is None else 1
    for wait in fitting_batches(painter, launch, wanted):
        launched.append(wait)
        if len(launched) > most_ahead:
            yield launched.popleft()()  # the only place where painting waits for the device, here and below
    while launched:
        yield launched.popleft()()


@torch.inference_mode()  # of all inputs: torch.compile takes a tensor made outside for another kind of input
def paint_batch(painter: Painter, encoded: EncodedPrompts, wanted: list[PictureId]) -> PaintedBatch:
    """Paint on the device. Asks it nothing."""
    config, device, prompts = painter.config, painter.device, encoded.prompts
    of_pictures = [prompts[each.row] for each in wanted]
    settings = [config.settings_of(prompt) for prompt in of_pictures]
    seeds, scales = [own.seed for own in settings], [own.guidance_scale for own in settings]
    rows, ids, indices = torch.tensor([(each.row, prompts[each.row].id, each.index) for each in wanted]).unbind(1)
    numbers = torch.stack([rows, encoded.negative_rows[rows], ids, indices])
    rows, negative_rows, ids, indices = upload(numbers, device)
    draw = partial(picture_noise, seeds, ids, indices, painter.pipeline.latent_shape, device)
    inputs = BatchInputs(
        noise=draw(0),
        guidance_scale=upload_floats(scales, device),
        conditioning=painter.pipeline.with_guidance(encoded.conditioning[rows], scales),
        negative=encoded.negative[negative_rows],
    )
    guided = is_guided(scales)

    def paint(engine: Engine, inputs: BatchInputs) -> PaintedBatch:
        decoded = denoise(
            engine, painter.schedule, inputs, draw, guided=guided, guidance_rescale=config.guidance_rescale
        )
        pixels = ops.to_pixels(decoded, config.image_size)
        return PaintedBatch(pixels, screen.measure(decoded, pixels))

    batch = paint(painter.engine, inputs) if painter.graphs is None else painter.graphs(paint, inputs, key=guided)
    texts = [prompt.text for prompt in of_pictures]
    return dataclasses.replace(batch, quality=painter.scorer.add_scores(batch.quality, batch.pixels, texts))


def download_batch(batch: PaintedBatch, encode: Callable[[Tensor], Sequence[PixelsOrFile]]) -> HostBatch:
    """The pictures as encode makes them of the pixels, and their quality."""
    pictures = encode(batch.pixels)
    return HostBatch(pictures, BatchQuality(*download(batch.quality.tensors())).split())
