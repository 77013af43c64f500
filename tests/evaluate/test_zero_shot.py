"""Zero-shot classification against transformers' own text model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from stablerep.config import UserError
from stablerep.evaluate import zero_shot
from stablerep.evaluate.config import EvaluateConfig
from stablerep.evaluate.run import evaluate
from stablerep.models import InputTransform, create_encoder, save_exported
from stablerep.models.text_tower import FOLDER, TextTower
from stablerep.models.tokenizer import open_tokenizer
from tests.data.pictures import encode, random_pixels


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a tiny text tower, both with random weights."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    tower = TextTower.create(open_tokenizer("default", 16), layers=1, width=32, heads=2, embed_dim=24)
    projection = nn.Linear(512, 24, bias=False)
    save_exported(
        create_encoder("resnet10t", 32), "resnet10t", InputTransform(32), folder / "exported",
        save_beside=lambda new: tower.save(new / FOLDER, projection, torch.tensor(50.0)),
    )  # fmt: skip
    return folder


def test_the_class_with_the_nearest_texts(run: Path, tmp_path: Path) -> None:
    names, templates = ("ankle_boot", "bag"), ("a photo of a {}", "{}")
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(1))
    found = zero_shot.name_by_text(x, names, run / "exported", templates)
    folder = run / "exported" / FOLDER
    tokenizer, model = CLIPTokenizer.from_pretrained(folder), CLIPTextModelWithProjection.from_pretrained(folder)
    classes = []
    for name in ("ankle boot", "bag"):
        texts = [template.replace("{}", name) for template in templates]
        tokens = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
        rows = model(input_ids=tokens).text_embeds.detach()
        mean = (rows / rows.norm(dim=1, keepdim=True)).mean(0)
        classes.append(mean / mean.norm())
    weight = load_file(folder / "image_projection.safetensors")["weight"]
    images = x @ weight.T
    images /= images.norm(dim=1, keepdim=True)
    oracle = (50 * images @ torch.stack(classes).T).softmax(1)
    assert found.named.tolist() == oracle.argmax(1).tolist()
    torch.testing.assert_close(found.confidence, oracle.amax(1), rtol=1e-3, atol=1e-4)

    photos = tmp_path / "photos"
    for number, (split, name) in enumerate((s, n) for s in ("train", "test") for n in names):
        (photos / split / name).mkdir(parents=True)
        for i in range(3):
            (photos / split / name / f"{i}.png").write_bytes(encode(random_pixels(10 * number + i)))
    config = EvaluateConfig(checkpoint=str(run), data=str(photos), out=tmp_path / "out", protocols="zero-shot")
    results = evaluate(config)
    assert results["zero_shot_top1"] == results["probes"]["zero-shot"]["top1"] and results["linear_top1"] is None


@pytest.mark.parametrize(
    ("text", "says"), [("a photo\n", "has no {} in the place"), ("\n \n", "is empty"), (None, "cannot be read")]
)
def test_templates_that_are_none(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "templates.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says):
        zero_shot.read_templates(path)
