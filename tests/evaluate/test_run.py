"""The whole of an evaluation, on a small folder of photos and on Fashion-MNIST."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from timm.data import create_transform

from stablerep import cli
from stablerep.config import UserError
from stablerep.data.labelled import fashion_mnist
from stablerep.evaluate import run as evaluation
from stablerep.evaluate.compare import compare
from stablerep.evaluate.config import EvaluateConfig
from stablerep.evaluate.features import features_of, inputs_of
from stablerep.evaluate.run import evaluate, notes
from stablerep.evaluate.summary import table
from stablerep.models import InputTransform, create_encoder, load_encoder, save_exported

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trousers, bags and sneakers as JPEGs: 15 of each to train on, 6 to test."""
    folder = tmp_path_factory.mktemp("photos")
    source = fashion_mnist("test")
    for label in (1, 7, 8):
        for i, row in enumerate(np.flatnonzero(source.labels == label)[:21]):
            path = folder / ("train" if i < 15 else "test") / source.class_names[label] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.images[row]).resize((48, 40)).save(path)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_exported(create_encoder("resnet10t", 32), "resnet10t", InputTransform(32), folder / "exported")
    return folder


@pytest.fixture
def settings(run: Path, photos: Path, tmp_path: Path) -> dict[str, Any]:
    return {"checkpoint": str(run), "data": str(photos), "out": tmp_path / "out", "epochs": 20, "device": "cpu"}


def test_checkpoint_on_a_folder_of_photos(settings: dict[str, Any]) -> None:
    found = evaluate(EvaluateConfig(**settings))
    assert found["linear_top1"] > 70 and found["knn_top1"] > 60 and found["few_shot_10"] > 60
    assert (found["train_photos"], found["test_photos"], found["classes"]) == (45, 18, 3)
    assert found["feature_width"] == 512
    assert json.loads((settings["out"] / "results.json").read_text()) == found
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table(found))
    assert f"{found['few_shot_10']:.1f} ± {found['few_shot_10_ci95']:.1f}" in console.export_text()

    weights = str(Path(settings["checkpoint"]) / "exported" / "model.safetensors")
    from_file = evaluate(EvaluateConfig(**{**settings, "checkpoint": weights, "out": settings["out"] / "file"}))
    assert from_file["linear_top1"] == found["linear_top1"]


def test_same_question_is_answered_from_the_file(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    opened = []
    monkeypatch.setattr(evaluation, "load_encoder", lambda *asked: opened.append(asked) or load_encoder(*asked))
    found = evaluate(EvaluateConfig(**settings))
    assert evaluate(EvaluateConfig(**settings)) == found
    assert evaluate(EvaluateConfig(**settings, batch_size=7)) == found
    assert len(opened) == 1
    results = settings["out"] / "results.json"
    results.write_text(results.read_text()[:100])  # cut short
    assert evaluate(EvaluateConfig(**settings))["linear_top1"] == found["linear_top1"]
    assert len(opened) == 2
    os.utime(run / "exported" / "model.safetensors", (0, 1))  # the encoder was trained again
    evaluate(EvaluateConfig(**settings))
    assert len(opened) == 3


def test_out_of_another_question_is_left_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    evaluate(EvaluateConfig(**settings))
    before = (settings["out"] / "results.json").read_bytes()
    with pytest.raises(UserError, match="--seed is 0, not 1"):
        evaluate(EvaluateConfig(**settings, seed=1))
    assert (settings["out"] / "results.json").read_bytes() == before

    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "config.yaml").write_text("objective: simclr\n")
    with pytest.raises(UserError, match="another run"):
        evaluate(EvaluateConfig(**{**settings, "out": trained}))
    (trained / "config.yaml").rename(trained / "results.json")
    with pytest.raises(UserError, match="no evaluation's"):
        evaluate(EvaluateConfig(**{**settings, "out": trained}))


def test_baselines(settings: dict[str, Any]) -> None:
    pixels = evaluate(EvaluateConfig(**{**settings, "checkpoint": "pixels", "image_size": 16}))
    assert pixels["feature_width"] == 16 * 16  # grey photos: one channel
    untrained = {**settings, "checkpoint": "untrained:resnet10t", "image_size": 32}
    first = evaluate(EvaluateConfig(**{**untrained, "out": settings["out"] / "a"}))
    again = evaluate(EvaluateConfig(**{**untrained, "out": settings["out"] / "b"}))
    assert first["feature_width"] == 512
    assert [first[name] for name in ("linear_top1", "few_shot_10", "knn_top1")] == [
        again[name] for name in ("linear_top1", "few_shot_10", "knn_top1")
    ]


def test_pixels_of_fashion_mnist(tmp_path: Path) -> None:
    found = evaluate(
        EvaluateConfig(checkpoint="pixels", data="fashion-mnist", out=tmp_path, max_train=500, epochs=20, image_size=16)
    )
    assert (found["train_photos"], found["test_photos"]) == (500, 10_000)
    assert found["linear_top1"] > 72 and found["knn_top1"] > 68 and 66 < found["few_shot_10"] < 76


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"checkpoint": ""}, "--checkpoint is empty"),
        ({"checkpoint": "untrained:"}, "lacks its encoder"),
        ({"checkpoint": "untrained:resnett10"}, "resnet10t"),
        ({"checkpoint": "nowhere"}, "nowhere"),
        ({"data": "fashion_mnist"}, "did you mean fashion-mnist"),
        ({"max_train": 2}, "3 classes"),
        ({"max_train": 0}, "--max-train"),
        ({"batch_size": 0}, "--batch-size"),
        ({"seed": -1}, "--seed"),
        ({"device": "gpu"}, "--device"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(
    settings: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        evaluate(EvaluateConfig(**{**settings, **changes}))
    assert "\n" not in str(caught.value)
    assert not settings["out"].exists()


def test_features_do_not_depend_on_the_batch(run: Path) -> None:
    encoder, transform = load_encoder(run)
    photos = fashion_mnist("test").take(np.arange(33))
    whole = features_of(encoder, transform, photos, device=CPU, show=False)
    parts = features_of(encoder.train(), transform, photos, device=CPU, batch_size=5, show=False)
    assert whole.x.shape == (33, 512) and whole.x.dtype == torch.float32 and not whole.x.is_inference()
    assert whole.y.tolist() == photos.labels.tolist()
    torch.testing.assert_close(parts.x, whole.x, rtol=1e-4, atol=1e-5)
    images = torch.from_numpy(photos.images)
    expected = torch.cat([encoder.eval()(transform(images[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(whole.x[:3], expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(300, 411), (64, 64), (17, 23), (1000, 333)])
@pytest.mark.parametrize(("interpolation", "crop_pct"), [("bicubic", 0.875), ("bilinear", 1.0)])
def test_a_photo_is_brought_to_size_as_timm_does(size: tuple[int, int], interpolation: Any, crop_pct: float) -> None:
    random = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    transform = InputTransform(64, interpolation=interpolation, crop_pct=crop_pct)
    of_timm = create_transform(
        (3, 64, 64), interpolation=interpolation, crop_pct=crop_pct, mean=transform.mean, std=transform.std
    )
    found = inputs_of([None, torch.from_numpy(random)], transform, CPU)
    expected = of_timm(Image.fromarray(random))
    level = 1 / 255 / min(transform.std)
    assert found.shape == (1, 3, 64, 64)
    assert (found[0] - expected).abs().max() <= 1.01 * level  # rounding; torch and Pillow share the algorithm


def test_damaged_photos_are_left_out_counted_and_named(settings: dict[str, Any], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(settings["data"], photos)
    bad = [
        photos / "train" / "bag" / "3.jpg",
        photos / "test" / "bag" / "16.jpg",
        photos / "test" / "trouser" / "17.jpg",
    ]
    bad[0].write_bytes(bad[0].read_bytes()[:300])
    bad[1].write_bytes(b"")
    bad[2].write_bytes(b"a letter")
    (photos / "test" / "bag" / "clip.mov").write_bytes(b"")
    found = evaluate(EvaluateConfig(**{**settings, "data": str(photos)}))
    assert (found["train_photos"], found["test_photos"]) == (44, 16)
    assert found["damaged_photos"] == sorted(map(str, bad), key=lambda path: ("/test/" in path, path))
    assert found["files_not_read"] == {".mov": 1}
    said = notes(found)
    assert "3 photos could not be decoded" in said[0] and str(bad[1]) in said[0]
    assert said[1] == "1 file (.mov 1) left out, not read as pictures" and len(said) == 2
    for path in bad:
        path.unlink()
    without = evaluate(EvaluateConfig(**{**settings, "data": str(photos), "out": tmp_path / "without"}))
    assert [without[name] for name in ("linear_top1", "knn_top1")] == [
        found[name] for name in ("linear_top1", "knn_top1")
    ]
    bad[1].write_bytes(b"")
    with pytest.raises(UserError, match=r"--strict: .*16\.jpg cannot be decoded"):
        evaluate(EvaluateConfig(**{**settings, "data": str(photos), "out": tmp_path / "strict", "strict": True}))


def test_a_drawn_split_lies_beside_the_results_and_gives_them_again(settings: dict[str, Any], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(Path(settings["data"]) / "train", photos)
    found = evaluate(EvaluateConfig(**{**settings, "data": str(photos)}))
    assert (found["train_photos"], found["test_photos"], found["split"]) == (36, 9, "drawn")
    table = str(settings["out"] / "split.csv")
    again = evaluate(EvaluateConfig(**{**settings, "data": table, "out": tmp_path / "again", "seed": 0}))
    assert again["split"] == "given"
    assert [again[name] for name in ("linear_top1", "knn_top1")] == [
        found[name] for name in ("linear_top1", "knn_top1")
    ]


def test_deep_photos_are_shown_by_one_range(settings: dict[str, Any], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for path in Path(settings["data"]).rglob("*.jpg"):
        values = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        deep = (photos / path.relative_to(settings["data"])).with_suffix(".png")
        deep.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(deep)
    found = evaluate(EvaluateConfig(**{**settings, "data": str(photos), "bit_range": "0:4080"}))
    eight = evaluate(EvaluateConfig(**{**settings, "out": tmp_path / "eight"}))
    assert found["bit_range"] == [0, 4080] and eight["bit_range"] is None
    assert abs(found["linear_top1"] - eight["linear_top1"]) < 12  # the same photos, but for JPEG's colours
    auto = evaluate(EvaluateConfig(**{**settings, "data": str(photos), "out": tmp_path / "auto"}))
    low, high = auto["bit_range"]
    assert 0 <= low < 100 and 3000 < high <= 4080


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """400 photos of 1.9 MB each, decoded, are 770 MB; a few batches of them are not."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((800, 800)).save(tmp_path / "photo.jpg")
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(200 if split == "train" else 1):
                (tmp_path / split / name / f"{i}.jpg").symlink_to(tmp_path / "photo.jpg")
    code = f"""
import resource, torch
from stablerep.data.labelled import open_labelled
from stablerep.evaluate.features import Pixels, features_of
from stablerep.models import InputTransform
data = open_labelled({str(tmp_path)!r})
peaks = []
for photos in (data.test, data.train):
    found = features_of(Pixels(False), InputTransform(8), photos, device=torch.device("cpu"), batch_size=16, show=False)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(len(found.x), peaks[1] - peaks[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, grown = done.stdout.split()
    assert int(count) == 400 and float(grown) < 300  # MB


def test_more_protocols_in_one_run(settings: dict[str, Any], run: Path) -> None:
    asked = {"protocols": "fine-tune,linear-augmented,logistic,retrieval", "few_shot": "3x2", "fine_tune_epochs": 6}
    found = evaluate(EvaluateConfig(**{**settings, **asked, "epochs": 6}))
    assert found["linear_top1"] is None and found["knn_top1"] is None
    assert found["linear_augmented_top1"] > 50 and found["fine_tune_top1"] > 50 and found["logistic_top1"] > 70
    assert found["retrieval_map"] > 50 and found["few_shot_episodes"]["top1"] > 60
    assert list(found["probes"]) == ["logistic", "linear-augmented", "fine-tune"]
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table(found))
    text = console.export_text()
    assert f"3x2: {found['few_shot_episodes']['top1']:.1f} ±" in text and "linear probe, augmented" in text
    encoder, _ = load_encoder(run)
    again, _ = load_encoder(run)
    assert all(torch.equal(one, other) for one, other in zip(encoder.parameters(), again.parameters(), strict=True))


def test_two_evaluations_are_compared_photo_by_photo(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    of_a = evaluate(EvaluateConfig(**{**settings, "out": a}))
    of_b = evaluate(EvaluateConfig(**{**settings, "checkpoint": "pixels", "image_size": 8, "out": b}))
    cli.evaluate(["--compare", str(a), str(b)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"A = {a}" and said[2].startswith("linear probe: ") and said[3].startswith("kNN: ")
    assert f"(A {of_a['linear_top1']:.1f}, B {of_b['linear_top1']:.1f}, p = " in said[2] and "18 photos" in said[2]
    (b / "predictions.npz").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"holds no predictions\.npz"):
        compare(a, b)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocols": "linear,knm"}, "--protocols 'knm' is unknown; did you mean knn"),
        ({"few_shot": "5"}, "--few-shot must be WAYxSHOT"),
        ({"few_shot": "3x16"}, "fewer than 16 training photos"),
        ({"protocols": "anomaly"}, "needs a class 'good'"),
        ({"protocols": "zero-shot"}, "has no text tower"),
        ({"protocols": "fine-tune", "checkpoint": "pixels"}, "has nothing to train"),
        ({"data": "torchvision:cifar"}, "did you mean cifar10"),
    ],
)
def test_protocols_say_what_they_lack(settings: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        evaluate(EvaluateConfig(**{**settings, "epochs": 1, **changes}))
    assert "\n" not in str(caught.value) and not settings["out"].exists()


def test_inspection_photos_are_scored_by_their_distance_to_good_ones(settings: dict[str, Any], tmp_path: Path) -> None:
    """MVTec AD's layout: bags are good parts, trousers and sneakers the defects."""
    source, photos = Path(settings["data"]), tmp_path / "mvtec"
    shutil.copytree(source / "train/bag", photos / "train/good")
    for kind, name in (("bag", "good"), ("trouser", "torn"), ("sneaker", "bent")):
        shutil.copytree(source / "test" / kind, photos / "test" / name)
    asked = {"data": str(photos), "protocols": "anomaly,knn", "checkpoint": "pixels", "image_size": 16}
    found = evaluate(EvaluateConfig(**{**settings, **asked}))
    assert found["anomaly_auroc"] > 80 and set(found["anomaly_per_class"]) == {"torn", "bent"}
    assert found["split"] == "drawn"
