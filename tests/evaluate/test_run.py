"""The whole of an evaluation, on a small folder of photos and on Fashion-MNIST."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from stablerep.config import UserError
from stablerep.data.labelled import fashion_mnist
from stablerep.evaluate import run as evaluation
from stablerep.evaluate.config import EvaluateConfig
from stablerep.evaluate.features import features_of
from stablerep.evaluate.run import evaluate, table
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
    images = torch.from_numpy(fashion_mnist("test").images[:33])
    whole = features_of(encoder, transform, images, device=CPU, show=False)
    parts = features_of(encoder.train(), transform, images, device=CPU, batch_size=5, show=False)
    assert whole.shape == (33, 512) and whole.dtype == torch.float32 and not whole.is_inference()
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    expected = torch.cat([encoder.eval()(transform(images[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(whole[:3], expected.detach(), rtol=1e-4, atol=1e-5)
