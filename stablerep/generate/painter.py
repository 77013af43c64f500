"""Paint batches: what stands between prompts and pixels on the device, and how many pictures fit into it at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from stablerep import ops
from stablerep.config import UserError
from stablerep.engines import Engine
from stablerep.engines.select import open_engine
from stablerep.engines.store import store_at
from stablerep.generate import screen
from stablerep.generate.conditioning import Conditioning
from stablerep.generate.config import GenerateConfig
from stablerep.generate.cuda import Graphs, Tensors, why_not
from stablerep.generate.denoise import denoise, is_guided, scales
from stablerep.generate.diffusers_schedule import DiffusersSchedule, open_schedule
from stablerep.generate.encode import Encode, Encoded, open_encode
from stablerep.generate.noise import picture_noise
from stablerep.generate.overlap import Overlap
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.schedulers import Schedule
from stablerep.generate.scores import Scorer, open_scorer
from stablerep.generate.settings import settings_of
from stablerep.generate.transfer import down, up
from stablerep.prompts import Prompt

Pairs = list[tuple[int, int]]  # which pictures: the row of the prompt, and the index
Picture = Tensor | Encoded  # pixels [H, W, 3] uint8 on the host, or a file where the device is not the host
Brought = tuple[list[Picture], list[screen.Mark]]  # a batch

T = TypeVar("T")
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
    """What painting needs and does not change, but for the batch size."""

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
        return Overlap(self.device, lambda outputs: bring(outputs, encode))

    def make_room(self, error: torch.OutOfMemoryError) -> None:
        """Give back what the next batch can do without, or take smaller batches."""
        if self.graphs is None or not self.graphs.give_back():
            self.batch_size.halve(self.device, error)


def open_painter(config: GenerateConfig, pipeline: Pipeline, device: torch.device, *, guided: bool) -> Painter:
    """Get ready for a run with one guidance scale; guided, if any of its prompts is.

    Raises:
        UserError: its scheduler, engine or scores cannot run here.
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


@dataclass(frozen=True)
class Told:
    """P prompts, encoded."""

    prompts: Sequence[Prompt]
    text: Conditioning  # P rows
    negatives: Conditioning  # a row for each different negative prompt
    negative_of: Tensor  # [P] int64 on the host: which of them is a prompt's own
    problems: dict[int, str]  # by row, why a prompt has no encoding; its row is the empty text's


def encode_prompts(painter: Painter, prompts: Sequence[Prompt]) -> Told:
    """Encode prompts and their negative ones; the rows of those that cannot be are named in a line each.

    Raises:
        Exception: what the text encoder raises, if it does so for every prompt: then it is not the prompts.
    """
    text, problems = _encode(painter.pipeline, prompts)
    for row, problem in problems.items():
        log.warning("--prompts row %d %s; its pictures are left out", prompts[row].id, problem)
    negatives = [settings_of(prompt, painter.config).negative_prompt for prompt in prompts]
    different = {negative: number for number, negative in enumerate(dict.fromkeys(negatives))}
    negative_of = torch.tensor([different[negative] for negative in negatives])
    return Told(prompts, text, painter.pipeline.encode_negative(list(different)), negative_of, problems)


def fitting(painter: Painter, paint: Callable[[Pairs], T], wanted: Pairs) -> Iterator[tuple[Pairs, T]]:
    """What paint makes of the wanted pictures in order, as many at once as fit."""
    start = 0
    while start < len(wanted):
        take = wanted[start : start + painter.batch_size.value]
        try:
            painted = paint(take)
        except torch.OutOfMemoryError as error:
            painter.make_room(error.with_traceback(None))  # its frames hold the batch
            continue
        start += len(take)
        yield take, painted


def paint_batch(painter: Painter, told: Told, take: Pairs) -> Tensors:
    """`pixels` [B, H, W, 3] uint8 of a batch and the fields of its screen.Marks, on the device. Asks it nothing."""
    config, device, prompts = painter.config, painter.device, told.prompts
    settings = [settings_of(prompts[row], config) for row, _ in take]
    seeds, guidance = [own.seed for own in settings], [own.guidance_scale for own in settings]
    rows, indices = torch.tensor(take).unbind(1)
    ids = torch.tensor([prompts[row].id for row, _ in take])
    rows, negative_rows, ids, indices = up(torch.stack([rows, told.negative_of[rows], ids, indices]), device)

    def draw(number: int) -> Tensor:
        return picture_noise(seeds, ids, indices, painter.pipeline.latent_shape, device, draw=number)

    guided = is_guided(guidance)
    inputs = {"scale": scales(guidance, len(take), device), "noise": draw(0)}
    toward = painter.pipeline.with_guidance(told.text[rows], guidance)
    for half, encoded in (("told", toward), ("negative", told.negatives[negative_rows])):
        inputs |= {f"{half} {name}": value for name, value in encoded.inputs.items()}

    def paint(engine: Engine, given: Tensors) -> Tensors:
        text, negative = (
            Conditioning({name.split()[1]: value for name, value in given.items() if name.startswith(half)})
            for half in ("told ", "negative ")
        )

        def drawn(number: int) -> Tensor:
            return draw(number) if number else given["noise"]

        decoded = denoise(
            engine, painter.schedule, text, negative, drawn, given["scale"], guided, config.guidance_rescale
        )
        pixels = ops.to_pixels(decoded, config.image_size)
        return {"pixels": pixels, **vars(screen.look(decoded, pixels))}

    outputs = painter.graphs(paint, inputs, key=guided) if painter.graphs is not None else paint(painter.engine, inputs)
    pixels = outputs.pop("pixels")
    marks = painter.scorer.look(screen.Marks(**outputs), pixels, [prompts[row].text for row, _ in take])
    return {"pixels": pixels, **vars(marks)}


def bring(outputs: Tensors, encode: Encode | Callable[[Tensor], list[Tensor]]) -> Brought:
    """The pictures of a batch and their marks, on the host."""
    pictures = encode(outputs["pixels"])
    names = [each.name for each in fields(screen.Marks)]
    marks = screen.Marks(*down([outputs[name] for name in names]))
    return list(pictures), screen.split(marks)


def _encode(pipeline: Pipeline, prompts: Sequence[Prompt]) -> tuple[Conditioning, dict[int, str]]:
    """A row a prompt, and by row why a prompt has none."""
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
