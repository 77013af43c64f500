"""An estimate that comes true, and touches nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import stablerep
from stablerep import cli
from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.dry_run import Estimate, estimate

FEW = {"num_images_per_prompt": 4, "num_inference_steps": 2, "prompts_per_shard": 2, "batch_size": 8, "device": "cpu"}


def test_the_estimate_is_near_what_the_run_makes(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    estimated = estimate(GenerateConfig(prompts=prompts, out=out, dry_run=True, usd_per_hour=3.0, **FEW))
    assert not out.exists()
    assert (estimated.prompts, estimated.images, estimated.images_there, estimated.sampled) == (4, 16, 0, 8)
    stablerep.generate(prompts=prompts, out=out, **FEW)
    made = sum(path.stat().st_size for path in out.glob("*.tar"))
    padding = 2 * 10240  # each tar ends on a multiple of that
    assert 0.8 * estimated.bytes <= made <= 1.2 * estimated.bytes + padding
    assert estimated.hours == pytest.approx(16 / estimated.images_per_second / 3600)


def test_what_is_there_already_is_not_counted_again(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stablerep.generate(prompts=prompts, out=out, **FEW)
    (out / "000001_stats.json").unlink()
    before = {path: path.read_bytes() for path in out.iterdir()}
    estimated = estimate(GenerateConfig(prompts=prompts, out=out, dry_run=True, **FEW))
    assert (estimated.images, estimated.images_there) == (16, 8)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(UserError, match="--seed is 0, not 1"):
        estimate(GenerateConfig(prompts=prompts, out=out, dry_run=True, seed=1, **FEW))


def test_as_a_user_reads_it(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "--prompts",
        str(prompts),
        "--out",
        str(tmp_path / "out"),
        "--num-inference-steps",
        "1",
        "--batch-size",
        "4",
    ]
    cli.gen([*argv, "--device", "cpu", "--dry-run", "--usd-per-hour", "2.5"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["prompts", "images", "bytes", "CPU-hours", "cost"]
    assert "images     40" in lines[1]
    assert not (tmp_path / "out").exists()


def test_large_numbers() -> None:
    estimated = Estimate(
        prompts=10_000_000, images=40_000_000, images_there=0, image_bytes=20_000, sampled=64, batch_size=64,
        images_per_second=5.5, device="cuda", usd_per_hour=2.0,
    )  # fmt: skip
    assert estimated.hours == pytest.approx(2020.2, abs=0.1)
    assert "815 GB" in str(estimated) and "GPU-hours  2,020" in str(estimated) and "$4,040.40" in str(estimated)


@pytest.mark.parametrize("changes", [{"usd_per_hour": 1.0}, {"usd_per_hour": -1.0, "dry_run": True}])
def test_a_price_goes_with_a_dry_run(changes: dict) -> None:
    with pytest.raises(UserError, match="--usd-per-hour"):
        GenerateConfig(prompts=Path("p.txt"), out=Path("o"), **changes)


def test_the_python_function_does_not_paint_on_a_dry_run(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dry-run"):
        stablerep.generate(prompts=prompts, out=tmp_path / "out", dry_run=True, **FEW)
    assert not (tmp_path / "out").exists()
