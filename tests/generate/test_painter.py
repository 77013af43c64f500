"""What happens to a shard when memory runs out, a prompt is none, or a picture is not worth keeping."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import stablerep
from stablerep.config import UserError
from stablerep.data.index import index_shards
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.torch import TorchEngine
from stablerep.generate import painter as painter_module
from stablerep.generate import worker
from stablerep.generate.config import GenerateConfig
from stablerep.generate.painter import BatchSize, PaintedPicture, Painter, paint_shard
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.schedulers import make_schedule
from stablerep.generate.verify import verify
from stablerep.prompts import Prompt

PROMPTS = [Prompt(0, "a photo of a bag"), Prompt(1, "a photo of a dark coat"), Prompt(2, "a photo of a shirt")]
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class SmallMemory(TorchEngine):
    most: int = 3

    def unet(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        if len(latents) > 2 * self.most:  # guidance doubles the batch
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().unet(latents, timestep, conditioning)


@dataclasses.dataclass(frozen=True)
class Spoiled(TorchEngine):
    """Decodes about half of the pictures, or all, to one value: NaN, or a grey."""

    value: float = 0.0
    every: bool = False

    def decode(self, latents: Tensor) -> Tensor:
        images = super().decode(latents)
        spoiled = ((latents.mean((1, 2, 3)) * 50).floor() % 2 == 0) | self.every
        return torch.where(spoiled[:, None, None, None], torch.full_like(images, self.value), images)


def painter(engine: TorchEngine, batch_size: int = 4, **changes) -> Painter:
    fields = {"num_images_per_prompt": 3, "num_inference_steps": 2, "batch_size": batch_size, **changes}
    config = GenerateConfig(prompts=Path("p.txt"), out=Path("out"), **fields)
    schedule = make_schedule(config.scheduler, engine.pipeline.scheduler_config, config.num_inference_steps, CPU)
    return Painter(engine.pipeline, engine, schedule, config, BatchSize(batch_size))


def kept(pictures: list[list[PaintedPicture]]) -> list[list[int]]:
    return [[picture.index for picture in of_prompt if picture.pixels is not None] for of_prompt in pictures]


def difference(one: list[list[PaintedPicture]], other: list[list[PaintedPicture]]) -> int:
    """The most grey levels between two paintings of the same pictures."""
    assert kept(one) == kept(other)
    pairs = [
        (a.pixels, b.pixels) for mine, yours in zip(one, other, strict=True) for a, b in zip(mine, yours, strict=True)
    ]
    return max(int((a.int() - b.int()).abs().max()) for a, b in pairs if a is not None)


def test_out_of_memory_halves_the_batch_once_and_says_so(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    roomy, small = painter(TorchEngine(pipeline), 16), painter(SmallMemory(pipeline), 16)
    with caplog.at_level(logging.WARNING):
        pictures = paint_shard(small, PROMPTS)
        again = paint_shard(small, PROMPTS)
    assert small.batch_size.value == 2  # 16, 8, 4 do not fit; the next shard starts from what does
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "--batch-size 16 does not fit into the memory of cpu; going on with 8"
    assert len(said) == 3
    assert kept(pictures) == [[0, 1, 2]] * 3
    assert difference(pictures, again) == 0
    assert difference(pictures, paint_shard(roomy, PROMPTS)) <= 1  # what an engine may round otherwise


def test_the_same_batches_make_the_same_bytes_whatever_came_before(pipeline: Pipeline) -> None:
    alone = paint_shard(painter(TorchEngine(pipeline)), PROMPTS[1:])
    paint_shard(shared := painter(TorchEngine(pipeline)), PROMPTS[:1])
    assert difference(paint_shard(shared, PROMPTS[1:]), alone) == 0


def test_memory_for_not_even_one_picture(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="not even one picture fits into the memory of cpu"):
        paint_shard(painter(SmallMemory(pipeline, most=0)), PROMPTS)


@pytest.mark.parametrize("policy", ["keep", "flag", "drop"])
def test_no_numbers_are_never_a_black_picture(pipeline: Pipeline, policy: str) -> None:
    spoiled = Spoiled(pipeline, value=float("nan"))
    pictures = paint_shard(painter(spoiled, screen=policy, screen_retries=20), PROMPTS)
    reasons = [picture.reason for of_prompt in pictures for picture in of_prompt]
    assert reasons.count("non-finite") >= 2
    assert [len(indices) for indices in kept(pictures)] == [3, 3, 3]
    for of_prompt in pictures:
        assert [picture.index for picture in of_prompt] == list(range(len(of_prompt)))
        assert all((picture.pixels is None) == (picture.reason == "non-finite") for picture in of_prompt)
    clean = paint_shard(painter(TorchEngine(pipeline), num_images_per_prompt=30, screen="keep"), PROMPTS)
    for row, of_prompt in enumerate(pictures):  # index i is the same picture, painted first or as a replacement
        for picture in of_prompt:
            if picture.pixels is not None:
                assert int((picture.pixels.int() - clean[row][picture.index].pixels.int()).abs().max()) <= 1


@pytest.mark.parametrize(("policy", "stays"), [("keep", True), ("flag", True), ("drop", False)])
def test_flat_pictures(pipeline: Pipeline, policy: str, stays: bool) -> None:
    pictures = paint_shard(painter(Spoiled(pipeline, value=0.3), screen=policy, screen_retries=20), PROMPTS)
    assert [len(indices) for indices in kept(pictures)] == [3, 3, 3]
    flat = [picture for of_prompt in pictures for picture in of_prompt if picture.reason == "flat"]
    assert bool(flat) == (policy != "keep")
    assert all((picture.pixels is not None) == stays for picture in flat)
    assert all(picture.quality.contrast == 0 for picture in flat)


def test_retries_end(pipeline: Pipeline) -> None:
    hopeless = Spoiled(pipeline, value=float("nan"), every=True)
    pictures = paint_shard(painter(hopeless, screen_retries=2), PROMPTS[:1])
    assert [picture.reason for picture in pictures[0]] == ["non-finite"] * 9


def test_a_prompt_the_encoder_fails_on_is_named_and_the_others_are_painted(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    class Picky:
        model_max_length = pipeline.tokenizer.model_max_length

        def __call__(self, texts: list[str], **options):
            if any("coat" in text for text in texts):
                raise OverflowError("no coats,\nplease")
            return pipeline.tokenizer(texts, **options)

    picky = TorchEngine(dataclasses.replace(pipeline, tokenizer=Picky()))
    with caplog.at_level(logging.WARNING):
        pictures = paint_shard(painter(picky), PROMPTS)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "--prompts row 1 cannot be encoded (OverflowError: no coats, please); its pictures are left out"
    assert kept(pictures) == [[0, 1, 2], [], [0, 1, 2]]
    assert difference([pictures[0]], [paint_shard(painter(TorchEngine(pipeline)), PROMPTS)[0]]) <= 1
    with pytest.raises(OverflowError):  # every prompt: then it is not the prompts
        paint_shard(painter(picky), PROMPTS[1:2])


FEW = {"num_images_per_prompt": 2, "num_inference_steps": 1, "prompts_per_shard": 2, "batch_size": 3, "device": "cpu"}


def test_one_bad_row_does_not_stop_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a bag"}\n{"prompt": ["a coat"]}\n{"prompt": "a \\ud83d"}\n"a shirt"\n'
    )
    summary = stablerep.generate(prompts=tmp_path / "p.jsonl", out=tmp_path / "out", **FEW)
    assert (summary.images, summary.prompts_unreadable, summary.prompts_empty) == (4, 2, 0)
    assert "2 prompts unreadable, left out" in str(summary)
    assert sorted(set(index_shards(tmp_path / "out").group.tolist())) == [0, 3]
    assert not verify(tmp_path / "out").problems
    rows = pq.read_table(tmp_path / "out/000000.parquet").to_pylist()
    assert [(row["prompt_id"], row["kept"], row["reason"]) for row in rows[2:]] == [(1, False, "unreadable prompt")] * 2


def test_rows_and_summary_tell_what_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline
) -> None:
    (tmp_path / "p.txt").write_text("a bag\na coat\na shirt\n")
    monkeypatch.setattr(worker, "open_pipeline", lambda *_: pipeline)
    monkeypatch.setattr(
        painter_module, "open_engine", lambda name, pipeline, *args, **kwargs: Spoiled(pipeline, value=0.3)
    )
    fields = FEW | {"screen": "drop", "screen_retries": 20, "num_images_per_prompt": 6}
    summary = stablerep.generate(prompts=tmp_path / "p.txt", out=tmp_path / "out", **fields)
    rows = [row for path in sorted((tmp_path / "out").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    dropped = [row for row in rows if not row["kept"]]
    assert dropped and {row["reason"] for row in dropped} <= {"flat", "duplicate"}
    assert all((row["size"], row["contrast"] < 4) == (0, row["reason"] == "flat") for row in dropped)
    assert len(rows) - len(dropped) == summary.images == summary.images_made == 18
    summarised = json.loads((tmp_path / "out/summary.json").read_text())
    assert sum(summarised["screened"].values()) == len(dropped)
    assert summarised["images_per_second"] > 0 and summarised["device"] == "cpu" and 0 <= summarised["wait_share"] <= 1
    assert f"screening (drop): {summarised['screened']['flat']} flat" in str(summary).replace("1 duplicate, ", "")
    assert not verify(tmp_path / "out").problems
