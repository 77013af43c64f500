"""CLIP scores: those of transformers' own processor and model, without waiting for the device."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor

import stablerep
from stablerep import cli
from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.scorers import ClipScore, open_clip_score
from stablerep.generate.screen import Limits, PictureQuality, judge
from stablerep.generate.verify import repair, verify
from tests.generate.tiny_scorers import save_classifier, save_clip

CPU = torch.device("cpu")
TEXTS = ["a photo of a dark bag", "a coat", "", "a photo of a dark bag", "dark " * 40]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"), seed=3)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipScore:
    return open_clip_score(str(clip_folder), CPU)


def pictures(count: int, height: int, width: int) -> list[Image.Image]:
    corners = np.random.default_rng(height).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC) for each in corners]


def stacked(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def oracle(folder: Path, images: list[Image.Image], texts: list[str], processor) -> Tensor:
    """As transformers' documentation scores a picture against a text, one pair at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    scores = []
    for image, text in zip(images, texts, strict=True):
        # SigLIP is documented with padding to the full length and no mask, CLIP with neither padding nor length.
        padding = "max_length" if model.config.model_type == "siglip" else False
        tokens = tokenizer(text, padding=padding, truncation=True, max_length=24, return_tensors="pt")
        mask = None if padding else tokens.attention_mask
        with torch.inference_mode():
            of_text = model.get_text_features(input_ids=tokens.input_ids, attention_mask=mask).pooler_output
            of_image = model.get_image_features(**processor(images=image, return_tensors="pt")).pooler_output
        scores.append(100 * torch.nn.functional.cosine_similarity(of_image, of_text).item())
    return torch.tensor(scores)


@pytest.mark.parametrize("size", [(30, 30), (32, 32), (20, 13), (48, 64), (97, 61)])
@pytest.mark.parametrize(("kind", "processor"), [("clip", CLIPImageProcessor), ("siglip", SiglipImageProcessor)])
def test_scores_are_those_of_transformers(tmp_path: Path, kind: str, processor, size: tuple[int, int]) -> None:
    folder = save_clip(tmp_path, kind)
    images = pictures(5, *size)
    expected = oracle(folder, images, TEXTS, processor.from_pretrained(folder))
    found = open_clip_score(str(folder), CPU)(stacked(images), TEXTS)
    assert found.dtype == torch.float32 and found[2].isnan()
    known = [0, 1, 3, 4]
    torch.testing.assert_close(found[known], expected.clamp(min=0)[known], atol=2e-3, rtol=0)
    assert expected.std() > 5  # there is something to see


def test_pil_resizes_within_a_grey_level(clip: ClipScore, clip_folder: Path) -> None:
    """PIL rounds after each of its two passes."""
    images = pictures(6, 97, 61)
    pil = CLIPImageProcessorPil.from_pretrained(clip_folder)(images=images, return_tensors="pt")["pixel_values"]
    deviation = torch.tensor(CLIPImageProcessor.image_std).reshape(3, 1, 1)
    levels = (clip.preprocess(stacked(images)) - pil) * deviation * 255
    assert levels.abs().max() < 1.01
    assert levels.abs().mean() < 0.1


def test_a_score_does_not_depend_on_the_batch(clip: ClipScore) -> None:
    pixels = stacked(pictures(5, 32, 32))
    together = clip(pixels, TEXTS)
    alone = torch.cat([clip(pixels[i : i + 1], TEXTS[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0, equal_nan=True)


def test_nothing_waits_for_the_device(clip: ClipScore) -> None:
    """A meta tensor has no numbers: whatever asks for one, to branch or to copy it to the host, raises."""
    on_meta = ClipScore(
        open_clip_score(clip.tokenizer.name_or_path, CPU).model.to("meta"), clip.preprocess, clip.tokenizer
    )
    scores = on_meta(stacked(pictures(5, 48, 64)).to("meta"), TEXTS)
    assert (scores.device.type, scores.shape, scores.dtype) == ("meta", (5,), torch.float32)


def test_the_verdict() -> None:
    nan = float("nan")
    scores = (30.0, 19.9, 20.0, nan)
    pictures = [PictureQuality(True, 50.0, 255 << (8 * number), score) for number, score in enumerate(scores)]
    assert judge(pictures, Limits(4.0, 2, clip_score_below=20.0)) == ["", "clip score", "", ""]
    assert judge(pictures, Limits(4.0, 2)) == ["", "", "", ""]
    # What scores too low is no original that others could be duplicates of.
    twins = [PictureQuality(True, 50.0, 0, score) for score in (10.0, 30.0, 30.0)]
    assert judge(twins, Limits(4.0, 2, clip_score_below=20.0)) == ["clip score", "", "duplicate"]


FEW = {"num_images_per_prompt": 3, "num_inference_steps": 2, "prompts_per_shard": 2, "batch_size": 4, "device": "cpu"}


def rows_in(out: Path) -> list[dict]:
    return [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_low_scores_are_dropped_and_others_painted(prompts: Path, tmp_path: Path, clip_folder: Path) -> None:
    model = str(clip_folder)
    scored = stablerep.generate(prompts=prompts, out=tmp_path / "all", clip_score_model=model, **FEW)
    rows = rows_in(tmp_path / "all")
    assert [np.isnan(row["clip_score"]) for row in rows] == [not row["prompt"] for row in rows]
    known = [row["clip_score"] for row in rows if row["prompt"]]
    assert scored.scores == {"clip_score": pytest.approx(np.mean(known), abs=1e-3)}
    assert f"mean clip_score {scored.scores['clip_score']:.4g}" in str(scored)
    assert not any("clip_score" in name for name in scored.screened)

    limit = float(np.median(known))
    flags = {"clip_score_model": model, "clip_score_below": limit, "screen": "drop", "screen_retries": 30} | FEW
    summary = stablerep.generate(prompts=prompts, out=tmp_path / "some", **flags)
    rows = rows_in(tmp_path / "some")
    dropped = [row for row in rows if row["reason"] == "clip score"]
    assert dropped and len(dropped) == summary.screened["clip score"]
    assert all(row["clip_score"] < limit and not row["kept"] and row["size"] == 0 for row in dropped)
    assert all(np.isnan(row["clip_score"]) or row["clip_score"] >= limit for row in rows if row["kept"])
    assert max(row["index"] for row in rows) >= 3  # others in their place
    assert summary.scores["clip_score"] > limit
    assert json.loads((tmp_path / "some/summary.json").read_text())["scores"] == summary.scores
    assert not verify(tmp_path / "some").problems

    # Flagged ones are kept; their pixels are those of a run without scores.
    stablerep.generate(prompts=prompts, out=tmp_path / "flagged", **flags | {"screen": "flag"})
    stablerep.generate(prompts=prompts, out=tmp_path / "plain", **FEW)
    flagged = rows_in(tmp_path / "flagged")
    assert {row["reason"] for row in flagged} == {"", "clip score"} and all(row["kept"] for row in flagged)
    assert [row["sha256"] for row in flagged] == [row["sha256"] for row in rows_in(tmp_path / "plain")]


def test_the_model_and_the_limit_make_another_run(prompts: Path, tmp_path: Path, clip_folder: Path) -> None:
    flags = {"prompts": prompts, "out": tmp_path / "out", "clip_score_model": str(clip_folder), **FEW}
    stablerep.generate(**flags)
    before = (tmp_path / "out/000001.parquet").read_bytes()
    other = save_clip(tmp_path / "other", seed=9)
    with pytest.raises(UserError, match="--clip-score-model is"):
        stablerep.generate(**flags | {"clip_score_model": str(other)})
    with pytest.raises(UserError, match="--clip-score-below is None, not 3"):
        stablerep.generate(**flags | {"clip_score_below": 3})
    with pytest.raises(UserError, match="--clip-score-model is"):
        stablerep.generate(**flags | {"clip_score_model": None})
    moved = save_clip(tmp_path / "moved", seed=3)  # the same weights elsewhere
    assert stablerep.generate(**flags | {"clip_score_model": str(moved)}).images_made == 0
    (tmp_path / "out/000001.tar").write_bytes(b"half")
    _, after = repair(GenerateConfig(**flags))
    assert not after.problems and (tmp_path / "out/000001.parquet").read_bytes() == before


def test_without_a_model_nothing_is_new(prompts: Path, tmp_path: Path) -> None:
    stablerep.generate(prompts=prompts, out=tmp_path / "out", **FEW)
    assert not any("score" in name for name in rows_in(tmp_path / "out")[0])
    assert "score" not in (tmp_path / "out/000000_stats.json").read_text()
    dataset = json.loads((tmp_path / "out/dataset.json").read_text())
    assert not any("clip" in name or "nsfw" in name for name in dataset["config"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"clip_score_below": 101.0, "clip_score_model": "m"}, "--clip-score-below must be between 0 and 100, got 101"),
        ({"clip_score_below": 20.0}, "--clip-score-below 20 needs --clip-score-model"),
        (
            {"clip_score_below": 20.0, "clip_score_model": "m", "screen": "keep"},
            "--clip-score-below 20 says nothing with --screen keep",
        ),
    ],
)
def test_flags_that_do_not_go_together(flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerateConfig(prompts=Path("p.txt"), out=Path("o"), **flags)


def test_keep_writes_the_column_alone(prompts: Path, tmp_path: Path, clip_folder: Path) -> None:
    flags = {"screen": "keep", "clip_score_model": str(clip_folder)} | FEW
    summary = stablerep.generate(prompts=prompts, out=tmp_path / "out", **flags)
    row = rows_in(tmp_path / "out")[0]
    assert row["clip_score"] >= 0 and "phash" not in row and summary.screened == {}


def test_folders_of_other_kinds(
    prompts: Path, tmp_path: Path, clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    text_only = save_clip(tmp_path / "text_only")
    lacking = AutoModel.from_pretrained(text_only)
    state = {name: value for name, value in lacking.state_dict().items() if not name.startswith("vision_model")}
    lacking.save_pretrained(text_only, state_dict=state)
    pickled = save_clip(tmp_path / "pickled")
    torch.save(lacking.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    torn = save_clip(tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:999])
    remote = save_clip(tmp_path / "remote")
    config = json.loads((remote / "config.json").read_text()) | {"auto_map": {"AutoConfig": "mine.Mine"}}
    (remote / "config.json").write_text(json.dumps(config | {"model_type": "mine"}))
    (remote / "mine.py").write_text("raise SystemExit('code from outside')\n")
    for folder, message in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "cannot be opened (AutoConfig)"),
        (save_classifier(tmp_path / "vit"), "is a vit model; give one of clip or siglip"),
        (text_only, "weights of a CLIPModel are missing, first vision_model"),
        (pickled, "cannot be opened (AutoModel)"),
        (torn, "cannot be opened (AutoModel)"),
        (remote, "cannot be opened (AutoConfig)"),
    ):
        argv = ["--prompts", str(prompts), "--out", str(tmp_path / "out"), "--clip-score-model", str(folder)]
        with pytest.raises(SystemExit) as stop:
            cli.gen(argv)
        assert stop.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("stablerep-gen: --clip-score-model") and message in last, last
    assert not (tmp_path / "out").exists()


def test_a_config_that_replaces_itself_is_the_same() -> None:
    config = GenerateConfig(prompts=Path("p"), out=Path("o"), clip_score_model="m", nsfw_model="n", screen="keep")
    assert dataclasses.replace(config) == config
