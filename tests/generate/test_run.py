"""A run: resumable, refused where it does not belong; several guidance scales; prompts with their own settings."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import BertTokenizer

import stablerep
from stablerep import cli, shards
from stablerep.config import UserError, parse
from stablerep.data.index import index_images, index_shards
from stablerep.generate.config import GenerateConfig, sweep_folder_name
from stablerep.generate.dry_run import estimate
from stablerep.generate.pipeline import Pipeline, default_generator
from stablerep.generate.run import generate
from stablerep.generate.summary import GenerateSummary, SweepSummary
from tests.generate.folders import digests

TWO_EACH = {"num_images_per_prompt": 2, "num_inference_steps": 2, "prompts_per_shard": 1, "batch_size": 3}
FEW = {"num_images_per_prompt": 1, "num_inference_steps": 1, "prompts_per_shard": 2, "batch_size": 4}


def test_shards_hold_k_pictures_of_every_prompt(prompts: Path, tmp_path: Path) -> None:
    summary = stablerep.generate(prompts=prompts, out=tmp_path / "out", **TWO_EACH)
    assert (summary.images, summary.images_made, summary.prompts_empty) == (8, 8, 1)
    index = index_shards(tmp_path / "out")
    assert index.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    row = pq.read_table(tmp_path / "out/000003.parquet").to_pylist()[1]
    assert (row["prompt"], row["index"], row["width"], row["kept"]) == ("a photo of a busy dress", 1, 32, True)


def test_a_second_run_makes_nothing_and_a_lost_shard_comes_back_the_same(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stablerep.generate(prompts=prompts, out=out, **TWO_EACH)
    whole = digests(out)
    assert stablerep.generate(prompts=prompts, out=out, **TWO_EACH).images_made == 0
    (out / "000001_stats.json").unlink()
    (out / "000002.tar").write_bytes(b"half")
    summary = stablerep.generate(prompts=prompts, out=out, **TWO_EACH | {"batch_size": 3})
    assert summary.images_made == 4
    assert digests(out) == whole


def test_long_prompts_are_cut_and_counted(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a photo of a bag\n" + "very " * 100 + "long\n")
    summary = stablerep.generate(prompts=tmp_path / "p.txt", out=tmp_path / "out", **TWO_EACH)
    assert (summary.prompts_cut, summary.images) == (1, 4)
    assert "longer than the tokenizer takes" in str(summary)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "torhc"}, "--engine 'torhc' is unknown; did you mean torch"),
        ({"scheduler": "dpm++"}, "--scheduler .* did you mean dpmsolver"),
        ({"num_images_per_prompt": 0}, "--num-images-per-prompt must be at least 1, got 0"),
        ({"guidance_scale": -1.0}, "--guidance-scale"),
        ({"guidance_scale": float("nan")}, "--guidance-scale"),
        ({"image_format": "gif"}, "--image-format"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_a_config_cannot_be_built_wrong(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerateConfig(prompts=Path("p.txt"), out=Path("o"), **changes)


def test_another_run_in_the_folder_is_refused(prompts: Path, tmp_path: Path) -> None:
    stablerep.generate(prompts=prompts, out=tmp_path / "out", **TWO_EACH)
    before = digests(tmp_path / "out")
    with pytest.raises(UserError, match=r"--guidance-scale is 2.0, not 3.0"):
        stablerep.generate(prompts=prompts, out=tmp_path / "out", guidance_scale=3.0, **TWO_EACH)
    prompts.write_text("something else\n")
    with pytest.raises(UserError, match="--prompts"):
        stablerep.generate(prompts=prompts, out=tmp_path / "out", **TWO_EACH)
    assert digests(tmp_path / "out") == before


@pytest.mark.parametrize("model", ["nowhere", "."])
def test_a_model_that_is_none(prompts: Path, tmp_path: Path, model: str) -> None:
    with pytest.raises(UserError, match="--model"):
        stablerep.generate(prompts=prompts, out=tmp_path / "out", model=model, **TWO_EACH)
    assert not (tmp_path / "out").exists()


def test_the_dtype_makes_another_run_where_it_is_given(prompts: Path, tmp_path: Path) -> None:
    fields = {
        "prompts": prompts,
        "num_images_per_prompt": 1,
        "num_inference_steps": 2,
        "device": "cpu",
        "engine": "torch",
    }
    stablerep.generate(out=tmp_path / "auto", **fields)
    stablerep.generate(out=tmp_path / "bf16", dtype="bf16", image_format="png", **fields)
    stablerep.generate(out=tmp_path / "fp32", dtype="fp32", image_format="png", **fields)
    with pytest.raises(UserError, match=r"its --dtype is the default, not 'bf16'"):
        stablerep.generate(out=tmp_path / "auto", dtype="bf16", **fields)
    half, whole = (
        [np.asarray(Image.open(io.BytesIO(data)), float) for _, data in shards.read_pictures(tmp_path / name)]
        for name in ("bf16", "fp32")
    )
    difference = np.abs(np.stack(half) - np.stack(whole))
    assert 0 < difference.mean() < 4  # grey levels: the same pictures, but for the rounding


def test_a_list_makes_a_run_of_each(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = stablerep.generate(prompts=prompts, out=out, guidance_scale=[1, 2.5], **FEW)
    assert [run.out.name for run in sweep.runs] == ["guidance_1", "guidance_2.5"]
    assert [run.images_made for run in sweep.runs] == [4, 4]
    assert str(sweep).count("4 images in") == 2
    # Each is what a run of that value alone would be, byte for byte.
    stablerep.generate(prompts=prompts, out=tmp_path / "one", guidance_scale=[2.5], **FEW)
    assert digests(tmp_path / "one") == digests(out / "guidance_2.5")
    assert {row["guidance_scale"] for row in pq.read_table(out / "guidance_1/000000.parquet").to_pylist()} == {1.0}
    with pytest.raises(UserError, match=r"holds several runs; take one, for instance .*guidance_1"):
        index_images(out)

    whole = digests(out)
    (out / "guidance_1/000001_stats.json").unlink()
    (out / "guidance_2.5/000000.tar").write_bytes(b"half")
    again = stablerep.generate(prompts=prompts, out=out, guidance_scale=[1, 2.5, 4], **FEW)
    assert [run.images_made for run in again.runs] == [2, 2, 4]
    assert {name: digest for name, digest in digests(out).items() if "guidance_4" not in name} == whole


def test_another_run_in_the_folder_refuses_before_anything_is_painted(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stablerep.generate(prompts=prompts, out=out / "sweep", guidance_scale=[1, 2], **FEW)
    stablerep.generate(prompts=prompts, out=out / "run", **FEW)
    (out / "else").mkdir()
    (out / "else/thesis.doc").write_text("dear")
    before = digests(out)
    for folder, changes, message in (
        ("sweep", {"guidance_scale": [4, 8], "seed": 1}, r"guidance_1 holds another run: its --seed is 0, not 1"),
        ("sweep", {"guidance_scale": 2}, "holds a sweep .guidance_1, guidance_2.; choose another --out"),
        ("run", {"guidance_scale": [2, 4]}, "holds one run; choose another --out"),
        ("else", {"guidance_scale": [2, 4]}, "thesis.doc"),
    ):
        with pytest.raises(UserError, match=message):
            stablerep.generate(prompts=prompts, out=out / folder, **FEW | changes)
    assert digests(out) == before


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--guidance-scale", "3"], 3.0),
        (["--guidance-scale", "1", "2", "4"], (1.0, 2.0, 4.0)),
        (["--guidance-scale", "1", "--guidance-scale", "2"], (1.0, 2.0)),
        (["--config", "run.yaml"], (1.5, 7.0)),
        (["--config", "run.yaml", "--guidance-scale", "2"], 2.0),
    ],
)
def test_flags_and_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: object) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("guidance_scale: [1.5, 7]\n")
    config = parse(GenerateConfig, [*argv, "--prompts", "p.txt", "--out", "o"], "stablerep-gen")
    assert config.guidance_scale == expected
    scales = [run.guidance_scale for run in config.runs()]
    assert scales == [expected] if isinstance(expected, float) else scales == list(expected)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([], "--guidance-scale needs a value"),
        ([2, 2.0], "--guidance-scale names 2 twice"),
        ([1, 200], "--guidance-scale must be between 0 and 100, got 200"),
        ([1, float("nan")], "--guidance-scale must be between 0 and 100, got nan"),
    ],
)
def test_scales_that_make_no_sweep(scales: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerateConfig(prompts=Path("p.txt"), out=Path("o"), guidance_scale=scales)


def test_folder_names_tell_scales_apart() -> None:
    assert [sweep_folder_name(scale) for scale in (1.0, 2.5, 0.1 + 0.2)] == [
        "guidance_1", "guidance_2.5", "guidance_0.30000000000000004",
    ]  # fmt: skip


def test_prompts_bring_their_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "a photo of a bag"},
        {"prompt": "a photo of a bag", "guidance_scale": 7.5, "negative_prompt": "a white bag", "seed": 9},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    few = ["--num-images-per-prompt", "1", "--num-inference-steps", "2", "--seed", "3", "--negative-prompt", "a shirt"]
    argv = ["--prompts", str(path), "--out", str(tmp_path / "out"), *few, "--image-format", "png"]
    cli.gen(argv)
    assert "2 images in" in capsys.readouterr().out
    expected = [
        {"seed": 3, "guidance_scale": 2.0, "negative_prompt": "a shirt"},
        {"seed": 9, "guidance_scale": 7.5, "negative_prompt": "a white bag"},
    ]
    written = pq.read_table(tmp_path / "out/000000.parquet").to_pylist()
    with tarfile.open(tmp_path / "out/000000.tar") as tar:
        about = [json.loads(tar.extractfile(f"{number:09}.json").read()) for number in (0, 1)]
    for number, values in enumerate(expected):
        assert values.items() <= written[number].items()
        assert values.items() <= about[number].items()
    assert written[0]["sha256"] != written[1]["sha256"]

    rows[1]["seed"] = 10  # the same texts, another run
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit):
        cli.gen(argv)
    assert "--prompts" in capsys.readouterr().err


@pytest.fixture
def nan_model(pipeline: Pipeline, tmp_path: Path) -> Path:
    """The embedded default with a VAE that gives NaN."""
    model = Path(shutil.copytree(default_generator(), tmp_path / "nan_model"))
    vae = copy.deepcopy(pipeline.vae)
    vae.decoder.conv_out.bias.requires_grad_(False).fill_(float("nan"))
    vae.save_pretrained(model / "vae")
    return model


def test_a_run_that_keeps_nothing_ends_with_3_and_says_why_each_time(
    nan_model: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--prompts", str(prompts), "--out", str(tmp_path / "out"), "--model", str(nan_model)]
    argv += ["--num-images-per-prompt", "1", "--num-inference-steps", "1", "--screen-retries", "0"]
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            cli.gen(argv)
        assert stopped.value.code == 3
        printed = capsys.readouterr()
        assert "0 images in" in printed.out
        assert f"stablerep-gen: no picture was kept in {tmp_path / 'out'} (4 non-finite); " in printed.err
    assert (tmp_path / "out/000000_stats.json").exists()


@pytest.mark.parametrize(
    ("most", "images", "problem"),
    [
        (1.0, 1, None),
        ("50%", 10, None),
        ("50%", 9, "--max-rejected 0.5: 0.55 of the pictures in out are lost, 11 of 20 (8 flat, 3 non-finite)"),
        (0, 20, None),
        (0.0, 19, "--max-rejected 0: 0.05 of the pictures in out are lost, 1 of 20 (8 flat, 3 non-finite)"),
        (1.0, 0, "no picture was kept in out (8 flat, 3 non-finite)"),
    ],
)
def test_what_may_be_lost(most: float | str, images: int, problem: str | None) -> None:
    config = GenerateConfig(prompts=Path("p.txt"), out="o", max_rejected=most)
    summary = GenerateSummary(
        out=Path("out"), images=images, images_made=0, seconds=1, wait_share=0, prompts=20, prompts_empty=0,
        prompts_cut=0, prompts_repeated=0, prompts_unreadable=0, prompts_short=0,
        screen="drop", screened={"flat": 8, "non-finite": 3},
        scores={}, device="cpu", engine="torch", batch_size=1, images_due=20, max_rejected=config.max_rejected,
    )  # fmt: skip
    assert summary.problem == (problem and problem + "; non-finite is the model's: try --dtype fp32 or another --model")
    sweep = SweepSummary((summary, summary))
    assert (sweep.problem or "").count("lost") == (summary.problem or "").count("lost") * 2


@pytest.mark.parametrize("most", ["half", "120%", -0.1, 2, float("nan"), "%"])
def test_no_share(most: float | str) -> None:
    with pytest.raises(UserError, match="--max-rejected must be a share from 0 to 1"):
        GenerateConfig(prompts=Path("p.txt"), out="o", max_rejected=most)


@pytest.mark.parametrize("dry_run", [False, True])
def test_no_folder_below_a_file_or_a_link_to_nothing(prompts: Path, tmp_path: Path, dry_run: bool) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    run = estimate if dry_run else generate
    for out, message in (
        ("file", "file is a file; choose a folder"),
        ("file/out", "file is a file; choose a folder"),
        ("link", "link is a link to .*nowhere, which is not there"),
        ("link/out", "link is a link to .*nowhere, which is not there"),
    ):
        with pytest.raises(UserError, match=f"--out {tmp_path / out}: {tmp_path}/{message}"):
            run(GenerateConfig(prompts=prompts, out=tmp_path / out, dry_run=dry_run))


def test_an_estimate_of_several_scales(prompts: Path, tmp_path: Path) -> None:
    fields = {"prompts": prompts, "out": tmp_path / "out", "guidance_scale": [1, 2.5], "dry_run": True, **FEW}
    estimated = estimate(GenerateConfig(**fields, usd_per_hour=2.0))
    assert list(estimated.runs) == ["guidance_1", "guidance_2.5"]
    assert not (tmp_path / "out").exists()
    names = [line.split()[0] for line in str(estimated).splitlines() if line]
    of_one = ["prompts", "images", "bytes", "CPU-hours", "cost"]
    assert names == ["guidance_1", *of_one, "guidance_2.5", *of_one, "together", "images", "bytes", "hours", "cost"]
    assert "together\nimages     8\n" in str(estimated)


def test_verify_and_repair_go_through_all_runs(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    stablerep.generate(prompts=prompts, out=out, guidance_scale=[1, 2.5], device="cpu", **FEW)
    whole = digests(out)
    cli.gen(["--verify", str(out)])
    assert capsys.readouterr().out.count("nothing wrong") == 2
    (out / "guidance_1/000001.tar").write_bytes(b"half")
    (out / "guidance_2.5/000000_stats.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        cli.gen(["--verify", str(out)])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "000001.tar: " in printed and "000000_stats.json: missing" in printed
    cli.gen(["--repair", str(out)])
    assert digests(out) == whole


def test_labels_and_repeated_captions(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("Prompt;Label\na white bag;bag\nA white bag.;\n;\n;\na dress;dress\n")
    summary = stablerep.generate(prompts=tmp_path / "p.csv", out=tmp_path / "out", engine="torch", **TWO_EACH)
    assert (summary.prompts_repeated, summary.prompts_empty) == (1, 2)
    assert "1 prompts repeat the caption of an earlier row" in str(summary)
    assert json.loads((tmp_path / "out/summary.json").read_text())["prompts_repeated"] == 1
    rows = [row for row, _ in shards.read_pictures(tmp_path / "out")]
    assert [row["label"] for row in rows[::2]] == ["bag", "", "", "", "dress"]
    with tarfile.open(tmp_path / "out/000004.tar") as tar:
        file = tar.extractfile("000000004.json")
        assert file and json.load(file)["label"] == "dress"


def test_prompts_in_a_script_that_the_text_encoder_does_not_know(tmp_path: Path, caplog) -> None:
    (tmp_path / "p.txt").write_text("暗い色の靴\na white bag\n白いバッグ\n\n", encoding="utf-8")
    with caplog.at_level("WARNING", "stablerep.generate"):
        stablerep.generate(prompts=tmp_path / "p.txt", out=tmp_path / "out", engine="torch", **TWO_EACH)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "2 of 3 prompts (67 %) are not in Latin script" in line and "translate" in line


def test_a_model_of_another_tokenizer_is_not_warned_about(pipeline: Pipeline, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "靴"]))
    assert pipeline.reads_latin_only
    assert not dataclasses.replace(pipeline, tokenizer=BertTokenizer(str(vocabulary))).reads_latin_only
