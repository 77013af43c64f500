"""NSFW scores: a classifier's probability, and the verdict of diffusers' safety checker without its black pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import stablerep
from stablerep import cli
from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.scorers import nsfw_labels, open_nsfw_score
from stablerep.generate.screen import Limits, PictureQuality, judge
from stablerep.generate.verify import verify
from tests.generate.tiny_scorers import save_classifier, save_clip, save_safety_checker

CPU = torch.device("cpu")
FEW = {"num_images_per_prompt": 3, "num_inference_steps": 2, "prompts_per_shard": 2, "batch_size": 4, "device": "cpu"}


def pictures(count: int, side: int = 40) -> torch.Tensor:
    corners = np.random.default_rng(5).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC)) for each in corners]
    return torch.from_numpy(np.stack(large))


@pytest.mark.parametrize("labels", [("normal", "nsfw"), ("drawings", "hentai", "neutral", "porn", "sexy"), ("NSFW",)])
def test_the_probability_is_the_classifiers(tmp_path: Path, labels: tuple[str, ...]) -> None:
    folder = save_classifier(tmp_path, labels)
    pixels = pictures(8)
    images = [Image.fromarray(each.numpy()) for each in pixels]
    with torch.inference_mode():
        inputs = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
        logits = AutoModelForImageClassification.from_pretrained(folder).eval()(**inputs).logits
    if len(labels) == 1:
        expected = 1 / (1 + torch.exp(-logits[:, 0]))
    else:
        safe = [number for number, label in enumerate(labels) if label in ("normal", "drawings", "neutral")]
        expected = 1 - torch.softmax(logits, 1)[:, safe].sum(1)
    torch.testing.assert_close(open_nsfw_score(str(folder), CPU)(pixels), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.02


def test_labels_that_do_not_exclude_each_other(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, ("nude", "gore", "sexual content"), problem_type="multi_label_classification")
    scorer = open_nsfw_score(str(folder), CPU)
    pixels = pictures(4)
    logits = scorer.model(pixel_values=scorer.preprocess(pixels)).logits
    torch.testing.assert_close(scorer(pixels), logits[:, [0, 2]].sigmoid().amax(1))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["normal", "nsfw"], (1,)),
        (["NSFW", "SFW"], (0,)),
        (["not_nsfw", "nsfw"], (1,)),
        (["safe", "un-safe", "Unsafe"], (2,)),
        (["neutral", "Porn", "explicit_nudity", "non-nude"], (1, 2)),
    ],
)
def test_labels_by_their_names(names: list[str], found: tuple[int, ...]) -> None:
    assert nsfw_labels("m", dict(enumerate(names))) == found


def test_no_such_label_says_which_there_are() -> None:
    with pytest.raises(UserError, match=r"--nsfw-model m has no label like nsfw, porn or unsafe; it has cat, dog"):
        nsfw_labels("m", {0: "cat", 1: "dog"})


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_the_safety_checkers_verdict_is_that_of_diffusers(tmp_path: Path, threshold: float) -> None:
    folder = save_safety_checker(tmp_path, threshold)
    pixels = pictures(300)
    scorer = open_nsfw_score(str(folder), CPU)
    scores = scorer(pixels)
    checker = StableDiffusionSafetyChecker.from_pretrained(folder)
    images = [Image.fromarray(each.numpy()) for each in pixels]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "feature_extractor")
    inputs = processor(images=images, return_tensors="pt")["pixel_values"]
    _, bad = checker(inputs, np.zeros((300, 8, 8, 3)))
    assert [round(score, 4) > 0.5 for score in scores.tolist()] == bad
    assert scores.min() >= 0 and scores.max() <= 1 and 0 < sum(bad) < 300
    checker.special_care_embeds_weights.data.fill_(2)  # then nothing needs special care: that must have mattered
    assert sum(checker(inputs, np.zeros((300, 8, 8, 3)))[1]) < sum(bad)


def test_a_safety_checker_as_it_was_saved_years_ago(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_safety_checker(tmp_path)
    before = open_nsfw_score(str(folder), CPU)(pictures(4))
    weights = load_file(folder / "model.safetensors")
    old = {f"vision_model.{name}" if name.startswith("vision_model.") else name: each for name, each in weights.items()}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(open_nsfw_score(str(folder), CPU)(pictures(4)), before)


@pytest.mark.parametrize("save", [save_classifier, save_safety_checker])
def test_nothing_waits_for_the_device(tmp_path: Path, save) -> None:
    scorer = open_nsfw_score(str(save(tmp_path)), CPU)
    scorer.model.to("meta")  # whatever asks a meta tensor for a number raises
    scores = scorer(pictures(4).to("meta"))
    assert (scores.device.type, scores.shape, scores.dtype) == ("meta", (4,), torch.float32)


def test_the_verdict_and_no_answer() -> None:
    scores = (0.2, 0.81, 0.8, float("nan"))
    judged = [PictureQuality(True, 50.0, 255 << (8 * i), nsfw_score=score) for i, score in enumerate(scores)]
    assert judge(judged, Limits(4.0, 2, nsfw_above=0.8)) == ["", "nsfw", "", "nsfw"]
    assert judge(judged, Limits(4.0, 2)) == [""] * 4


def test_what_is_not_safe_is_left_out(prompts: Path, tmp_path: Path) -> None:
    model = str(save_classifier(tmp_path / "vit"))
    flags = {"prompts": prompts, "nsfw_model": model, **FEW}
    scored = stablerep.generate(out=tmp_path / "all", **flags)
    rows = pq.read_table(tmp_path / "all/000000.parquet").to_pylist()
    scores = [row["nsfw_score"] for row in rows]
    assert all((row["reason"] == "nsfw") == (row["nsfw_score"] > 0.5) and row["kept"] for row in rows)
    limit = float(np.median(scores))
    summary = stablerep.generate(out=tmp_path / "safe", nsfw_above=limit, screen="drop", screen_retries=30, **flags)
    rows = [row for path in (tmp_path / "safe").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert all((row["nsfw_score"] <= limit) == row["kept"] == (row["size"] > 0) for row in rows)
    assert summary.images == 12 and summary.screened["nsfw"] >= 3
    assert summary.scores["nsfw_score"] < scored.scores["nsfw_score"]
    assert not verify(tmp_path / "safe").problems


def test_both_models_at_once(prompts: Path, tmp_path: Path) -> None:
    clip, checker = save_clip(tmp_path / "clip"), save_safety_checker(tmp_path / "sd", 0.9)
    models = {"clip_score_model": str(clip), "nsfw_model": str(checker)}
    summary = stablerep.generate(prompts=prompts, out=tmp_path / "out", **models, **FEW)
    assert list(summary.scores) == ["clip_score", "nsfw_score"]
    with pytest.raises(UserError, match="--nsfw-model is"):  # how it prepares pictures is part of the model
        config = tmp_path / "sd/feature_extractor/preprocessor_config.json"
        config.write_text(config.read_text().replace("0.48145466", "0.5"))
        stablerep.generate(prompts=prompts, out=tmp_path / "out", **models, **FEW)


def test_other_folders(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cats = save_classifier(tmp_path / "cats", ("cat", "dog"))
    bare = save_classifier(tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    for folder, message in (
        (cats, "has no label like nsfw, porn or unsafe; it has cat, dog"),
        (bare, "cannot be opened (AutoImageProcessor)"),
        (save_clip(tmp_path / "clip"), "--nsfw-model"),
    ):
        with pytest.raises(SystemExit):
            cli.gen(["--prompts", str(prompts), "--out", str(tmp_path / "out"), "--nsfw-model", str(folder)])
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("stablerep-gen: --nsfw-model") and message in last, last
    for flags, message in (
        ({"nsfw_above": 0.3}, "--nsfw-above 0.3 needs --nsfw-model"),
        ({"nsfw_above": 1.1, "nsfw_model": "m"}, "--nsfw-above must be between 0 and 1, got 1.1"),
    ):
        with pytest.raises(UserError, match=message):
            GenerateConfig(prompts=prompts, out=tmp_path / "out", **flags)
