"""An encoder in each form, opened by those it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from stablerep import cli
from stablerep.config import UserError
from stablerep.engines import tensorrt
from stablerep.export import graphs
from stablerep.export.config import ExportConfig
from stablerep.export.run import export
from stablerep.models import InputTransform, create_encoder, load_encoder, save_exported
from stablerep.train.loop import train
from tests.data.pictures import write_shards
from tests.train.test_loop import config_for


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return train(config_for(write_shards(root / "shards", prompts=10, per_prompt=4), root / "run")).parent


def features(encoder: nn.Module, transform: InputTransform) -> torch.Tensor:
    pixels = torch.randint(0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(1)).byte()
    with torch.no_grad():
        return encoder(transform(pixels))


def test_a_folder_for_the_hub_opens_in_timm_and_transformers(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    export(ExportConfig(checkpoint=str(run), to="hf", out=out))
    expected = features(*load_encoder(run))
    encoder, transform = load_encoder(out)
    assert torch.equal(features(encoder, transform), expected)
    opened = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert torch.equal(features(opened, transform), expected)
    from transformers import AutoModel

    wrapped = AutoModel.from_pretrained(out).eval()
    assert torch.allclose(features(lambda images: wrapped(images).pooler_output, transform), expected, atol=1e-5)


def test_its_card_says_what_the_runs_files_say_and_no_paths(run: Path, tmp_path: Path) -> None:
    shards = run.parent / "shards"
    flags = {"prompts": "/home/me/prompts.txt", "model": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
    about = {"num_prompts": 10, "flags": flags | {"guidance_scale": 2.0}}
    (shards / "dataset.json").write_text(json.dumps({"config": {}, "run": about}))
    export(ExportConfig(checkpoint=str(run / "exported"), to="hf", out=tmp_path / "hub"))
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "- `shards`: 40 pictures, 10 prompts or photos" in card
    assert "- model: stable-diffusion-v1-5/stable-diffusion-v1-5" in card and "guidance_scale: 2.0" in card
    assert "prompts: 10 prompts of `prompts.txt`" in card and "- objective: stablerep" in card
    assert "After 6 steps:" in card and card.count("TO BE FILLED IN") == 4
    assert str(run.parent) not in card and "/home/me" not in card


def test_a_graph_gives_the_features_of_torch(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "graph"
    (line,) = export(ExportConfig(checkpoint=str(run), to="onnx", out=out))
    assert "differs from torch by" in line
    assert sorted(path.name for path in out.iterdir()) == ["input_transform.json", "model.onnx"]
    encoder, transform = load_encoder(run)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    found = features(lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), transform)
    assert torch.allclose(found, features(encoder, transform), rtol=1e-4, atol=1e-5)


def test_a_tensorrt_engine_is_built_or_the_line_says_how(run: Path, tmp_path: Path) -> None:
    config = ExportConfig(checkpoint=str(run), to="trt", out=tmp_path / "engine", batch_size=8)
    if tensorrt.why_not_build():
        with pytest.raises(UserError, match=r"trtexec --onnx=model\.onnx .*--optShapes=images:8x3x32x32"):
            export(config)
        assert not config.out.exists()
    else:
        assert export(config)[0].endswith("1 to 8 pictures at once")
        assert (config.out / "model.plan").stat().st_size > 1000


def test_the_reference_code_reads_its_own_layout(tmp_path: Path) -> None:
    """By the lines of its main_linear.py: names under visual. go into timm's model, which lacks a classifier alone."""
    torch.manual_seed(0)
    encoder = create_encoder("vit_small_patch16_224", 224)
    save_exported(encoder, "vit_small_patch16_224", InputTransform(224), tmp_path / "exported")
    export(ExportConfig(checkpoint=str(tmp_path / "exported"), to="reference", out=tmp_path / "theirs"))
    file = tmp_path / "theirs" / "epoch_last.pth"
    state = torch.load(file, weights_only=False)["model"]
    model = timm.create_model("vit_small_patch16_224", num_classes=10)
    named = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    missing, surplus = model.load_state_dict(named, strict=False)
    assert set(missing) == {"head.weight", "head.bias"} and not surplus
    back, _ = load_encoder(file)  # it says itself which model it is
    for name, value in back.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name])


def test_as_a_user_meets_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.export([str(run), "--to", "timm", "--out", str(tmp_path / "out")])
    assert f'timm.create_model("local-dir:{tmp_path / "out"}"' in capsys.readouterr().out
    for argv, said in (
        ([str(run), "--to", "timm", "--out", str(tmp_path / "out")], "is not empty; choose a new folder"),
        ([str(run), "--to", "reference", "--out", str(tmp_path / "b")], "and this is a test_resnet at 32"),
        ([str(run), "--to", "onxx", "--out", str(tmp_path / "b")], "did you mean onnx"),
        ([str(tmp_path / "none"), "--out", str(tmp_path / "b")], "--checkpoint"),
    ):
        with pytest.raises(SystemExit):
            cli.export(argv)
        assert said in capsys.readouterr().err
        assert not (tmp_path / "b").exists()


def test_a_run_that_was_cut_off_leaves_no_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(graphs, "_distance", lambda *_: float("nan"))
    with pytest.raises(UserError, match="the graph's features differ from torch's by nan"):
        export(ExportConfig(checkpoint=str(run), to="onnx", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
