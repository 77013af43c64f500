"""The whole of a comparison, on small sets of pictures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

import stablerep
from stablerep import cli
from stablerep.config import UserError
from stablerep.data.labelled import open_labelled
from stablerep.evaluate.quality import features as feature_files
from stablerep.evaluate.quality import run as comparison
from stablerep.evaluate.quality.config import QualityConfig
from stablerep.evaluate.quality.run import quality
from stablerep.evaluate.quality.sets import open_real, open_synthetic
from stablerep.evaluate.quality.table import notes, table
from tests.evaluate.quality.conftest import PER_CLASS, Folders

SCALARS = (
    "frechet_distance", "kid", "kid_std", "precision", "recall", "density", "coverage", "vendi_score",
    "diversity_within_prompt", "prompt_agreement",
)  # fmt: skip


@pytest.fixture
def settings(folders: Folders, tmp_path: Path) -> dict[str, Any]:
    return {
        "synthetic": str(folders.synthetic), "real": str(folders.real), "features": "pixels", "out": tmp_path / "out",
        "neighbours": 3, "kid_subsets": 10, "thumbnails": 5, "device": "cpu",
    }  # fmt: skip


def printed(results: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table(results))
    return console.export_text() + "\n".join(notes(results))


def test_all_numbers_of_a_table_and_a_folder(settings: dict[str, Any], folders: Folders) -> None:
    found = quality(QualityConfig(**settings))
    assert json.loads((settings["out"] / "quality.json").read_text()) == found
    assert (found["version"], found["real_images"], found["synthetic_images"]) == (1, 3 * PER_CLASS, 60)
    assert found["feature_width"] == 32 * 32  # grey pictures
    assert all(isinstance(found[name], float) for name in SCALARS)
    assert found["precision"] > 0.6 and found["coverage"] > 0.3 and found["prompt_agreement"] > 0.85
    assert found["prompt_agreement_kind"] == "class" and found["class_agreement_real"] > 0.85
    assert 0.5 < found["diversity_within_prompt"] < 1  # prompts of one class are no further apart
    assert [row["class"] for row in found["per_class"]] == ["bag", "sneaker", "trouser"]
    assert {row["synthetic_images"] for row in found["per_class"]} == {20}
    assert len(found["per_prompt"]) == 15 and {row["images"] for row in found["per_prompt"]} == {4}
    assert found["per_prompt"][0]["prompt"] == "a photo of a trouser, number 0"
    assert found["photos"]["images"] == 45 and found["photos"]["precision"] > 0.6

    shown = printed(found)
    for text in ("Fréchet distance", "domain gap", "least covered of 3 classes", "pixels see", "quality.json"):
        assert text in shown
    lines = printed(found, 80).split("photos: what")[0].split("\n")
    assert len(lines) < 50 and max(map(len, lines)) <= 80


def test_a_copied_training_photo_is_named_with_its_pair(settings: dict[str, Any], folders: Folders) -> None:
    memorised = quality(QualityConfig(**settings))["memorised"]
    assert memorised["count"] >= 1 and memorised["share"] == memorised["count"] / 60
    (first, *_) = memorised["pairs"]
    assert first["synthetic"] == folders.copied and first["similarity"] > 0.9999
    assert "/train/trouser/" in first["real"] and len(memorised["closest"]) == 5
    assert sum(row["memorised"] for row in json.loads((settings["out"] / "quality.json").read_text())["per_class"]) >= 1
    with Image.open(settings["out"] / first["picture"]) as pair:
        pixels = np.asarray(pair)
    middle = pixels.shape[1] // 2
    assert (pixels[:, : middle - 4] == pixels[:, middle + 4 :]).all() and pixels[:, : middle - 4].std() > 20
    for folder in ("most_synthetic", "most_real_like"):
        assert len(list((settings["out"] / folder).glob("*.png"))) == 5


def test_test_photos_are_left_alone_unless_asked_for(
    settings: dict[str, Any], folders: Folders, tmp_path: Path
) -> None:
    without = tmp_path / "real"
    shutil.copytree(folders.real, without)
    for path in (without / "test").rglob("*.png"):
        path.write_bytes(b"no picture")  # would be named as damaged
    found = quality(QualityConfig(**{**settings, "real": str(without), "strict": True}))
    assert found["damaged"] == []
    tested = quality(QualityConfig(**settings | {"real_split": "test", "out": tmp_path / "tested"}))
    assert tested["real_images"] == 24 and tested["memorised"]["training_photos"] == 3 * PER_CLASS
    assert "/train/" in tested["memorised"]["pairs"][0]["real"]


def test_drawn_split_is_that_of_an_evaluation(folders: Folders) -> None:
    train = folders.real / "train"  # CLASS/ folders alone
    found, theirs = open_real(str(train), "train", 3), open_labelled(str(train), 3)
    assert found.rows.tolist() == theirs.train.rows.tolist()  # type: ignore[union-attr]
    assert open_real(str(train), "test", 3).rows.tolist() == theirs.test.rows.tolist()  # type: ignore[union-attr]


def test_photos_without_labels(settings: dict[str, Any], folders: Folders, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (folders.real / "train").rglob("*.png"):
        shutil.copy(path, flat)
    found = quality(QualityConfig(**{**settings, "real": str(flat), "synthetic": str(folders.synthetic.parent)}))
    assert found["prompt_agreement"] is None and found["diversity_within_prompt"] is None
    assert found["per_class"] == [] and found["per_prompt"] == []
    assert found["memorised"]["pairs"][0]["synthetic"] == folders.copied
    assert "no class is known of both sides" in printed(found)

    for split in ("train", "test"):  # a split without classes
        (tmp_path / "split" / split).mkdir(parents=True)
    for number, path in enumerate(sorted(flat.iterdir())):
        shutil.copy(path, tmp_path / "split" / ("test" if number % 3 else "train"))
    assert len(open_real(str(tmp_path / "split"), "train", 0)) == 30
    assert len(open_real(str(tmp_path / "split"), "test", 0)) == 60


def test_table_keeps_photos_without_a_label(folders: Folders, tmp_path: Path) -> None:
    rows = [
        f"{path},{path.parent.name if n % 2 else ''},train" for n, path in enumerate(folders.real.rglob("train/*/*"))
    ]
    (tmp_path / "split.csv").write_text("path,label,split\n" + "\n".join(rows) + f"\n{folders.copied},bag,test\n")
    found = open_real(str(tmp_path / "split.csv"), "train", 0)
    assert len(found) == len(rows) and set(found.classes.tolist()) == {-1, 0, 1, 2}
    assert len(open_real(str(tmp_path / "split.csv"), "test", 0)) == 1


def test_same_question_is_answered_from_the_file_and_features_are_kept(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_files, "PART", 4)  # some parts a set
    found = quality(QualityConfig(**settings, batch_size=8))
    assert quality(QualityConfig(**settings, batch_size=7)) == found
    parts = sorted((settings["out"] / "features").rglob("*.npz"))
    assert len(parts) > 4
    (settings["out"] / "quality.json").write_text("{")  # killed while it was measuring
    parts[-1].unlink()
    times = {path: path.stat().st_mtime_ns for path in parts[:-1]}
    again = quality(QualityConfig(**settings, batch_size=8))
    assert {path: path.stat().st_mtime_ns for path in parts[:-1]} == times
    assert {name: again[name] for name in SCALARS} == {name: found[name] for name in SCALARS}
    with pytest.raises(UserError, match="--neighbours is 3, not 2"):
        quality(QualityConfig(**{**settings, "neighbours": 2}))


def test_new_pictures_are_seen(settings: dict[str, Any], folders: Folders, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folders.synthetic.parent, mine)
    first = quality(QualityConfig(**{**settings, "synthetic": str(mine)}))
    (mine / Path(folders.copied).name).unlink()
    second = quality(QualityConfig(**{**settings, "synthetic": str(mine)}))
    assert (first["synthetic_images"], second["synthetic_images"]) == (60, 59)
    assert first["memorised"]["count"] > second["memorised"]["count"]
    assert len(list((settings["out"] / "features").iterdir())) == 2  # nothing of the earlier ones


def test_a_run_that_is_killed_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    """Killed for good once the first features are on the disk; the same command ends as one that was left alone."""
    program = (
        "import sys, json; from stablerep.evaluate.quality import features; features.PART = 4;"
        "from stablerep.evaluate.quality.run import quality, QualityConfig;"
        "quality(QualityConfig(**json.loads(sys.argv[1])))"
    )
    arguments = [sys.executable, "-c", program, json.dumps({**settings, "batch_size": 8}, default=str)]
    run = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    while run.poll() is None and not list(settings["out"].glob("features/*/*.npz")):
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (settings["out"] / "quality.json").exists()
    resumed = quality(QualityConfig(**settings, batch_size=8))
    alone = quality(QualityConfig(**{**settings, "out": tmp_path / "alone"}))
    assert {name: resumed[name] for name in SCALARS} == pytest.approx({name: alone[name] for name in SCALARS})


def test_damaged_pictures_are_left_out_and_named(settings: dict[str, Any], folders: Folders, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folders.synthetic.parent, mine)
    broken = sorted(mine.glob("*.png"))[2]
    broken.write_bytes(broken.read_bytes()[:99])
    given = {**settings, "synthetic": str(mine / "table.jsonl")}
    found = quality(QualityConfig(**given))
    assert found["synthetic_images"] == 59 and found["damaged"] == [str(broken)]
    assert f"1 could not be decoded, left out: {broken}" in printed(found)
    with pytest.raises(UserError, match=f"--strict: {broken} cannot be decoded"):
        quality(QualityConfig(**{**given, "strict": True, "out": tmp_path / "strict"}))


def test_inception_is_that_of_torch_fidelity(settings: dict[str, Any], folders: Folders, tmp_path: Path) -> None:
    """With random weights, as the published ones are not in the repository."""
    torch.manual_seed(0)
    theirs = _random_inception(tmp_path / "weights.pth")
    config = QualityConfig(**{**settings, "features": f"inception:{tmp_path / 'weights.pth'}"})
    synthetic = open_synthetic(config.synthetic, ()).take(np.arange(3))
    encoder = feature_files.open_encoder(config, (synthetic,))
    found = feature_files.features_of_set(
        encoder, synthetic, tmp_path, "synthetic", device=torch.device("cpu"), batch_size=2, strict=True
    )
    pictures = [np.asarray(Image.open(synthetic.where(row)).convert("RGB")) for row in range(3)]
    (expected,) = theirs(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
    assert found.x.shape == (3, 2048) and torch.allclose(found.x, expected, rtol=1e-3, atol=1e-4)


def _random_inception(path: Path) -> FeatureExtractorInceptionV3:
    """Writes weights as torch-fidelity reads them; its constructor reads some, so they are made without it."""
    from unittest.mock import patch

    with patch.object(FeatureExtractorInceptionV3, "load_state_dict"), patch("torch.load", return_value={}):
        path.touch()
        inner = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    for parameter in inner.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(inner.state_dict(), path)
    return inner.eval()


def bad(settings: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        quality(QualityConfig(**{**settings, **changes}))
    text = str(caught.value)
    assert "\n" not in text and "--data" not in text
    return text


def test_bad_input_is_one_line(settings: dict[str, Any], folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(folders.synthetic.parent.glob("*.png"))[:3]:
        shutil.copy(path, few)
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    (nothing / "a.png").write_bytes(b"no picture")
    real = settings["real"]
    assert "--synthetic" in bad(settings, synthetic=str(tmp_path / "empty"))
    assert "--synthetic" in bad(settings, synthetic=str(tmp_path / "not-there"))
    assert "--real" in bad(settings, real=str(tmp_path / "empty"))
    assert "--real" in bad(settings, real="fashion-mnsit") and "--synthetic" in bad(settings, synthetic="")
    assert "has 3 pictures" in bad(settings, synthetic=str(few))
    assert "none of the 1 synthetic pictures" in bad(settings, synthetic=str(nothing), out=tmp_path / "n")
    assert "share 90 files" in bad(settings, synthetic=f"{real}/train", out=tmp_path / "a")
    assert "no test photos" in bad(settings, real=str(few), real_split="test", out=tmp_path / "b")
    assert "--features untrained lacks" in bad(settings, features="untrained")
    assert "--features inception:/no" in bad(settings, features="inception:/no", out=tmp_path / "c")
    assert "--features" in bad(settings, features="resnet5O", out=tmp_path / "d")
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    assert "no weights of" in bad(settings, features=f"inception:{tmp_path}/weights.pth", out=tmp_path / "e")
    assert "--memorised-quantile" in bad(settings, memorised_quantile=1.0)
    (tmp_path / "file").write_text("")
    assert "--out" in bad(settings, out=tmp_path / "file")


def test_features_that_are_not_finite_are_refused(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverged(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) / (images.flatten(1).sum(1, keepdim=True) > 300)

    opened = feature_files.open_encoder

    def diverged(*asked: Any) -> feature_files.Encoder:
        encoder = opened(*asked)
        return feature_files.Encoder(Diverged(), encoder.transform, encoder.stamp)

    monkeypatch.setattr(comparison, "open_encoder", diverged)
    assert "are not finite" in bad(settings)


def test_command_and_function(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    argv = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
    cli.main(["quality", *argv])
    assert "Fréchet distance" in capsys.readouterr().out
    assert stablerep.quality(**settings)["synthetic_images"] == 60
    with pytest.raises(SystemExit) as stop:
        cli.quality([*argv, "--neighbours", "0"])
    assert stop.value.code == 2
