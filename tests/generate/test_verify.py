"""--verify names every kind of damage; --repair mends it and touches nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stablerep
from stablerep import cli
from stablerep.config import UserError
from stablerep.generate.verify import ENDINGS, recorded_flags, verify

FEW = {"num_images_per_prompt": 2, "num_inference_steps": 1, "prompts_per_shard": 1, "batch_size": 3, "device": "cpu"}


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "summary.json"}


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    (folder / "prompts.txt").write_text("a photo of a bag\na photo of a coat\na photo of a shirt\n")
    stablerep.generate(prompts=folder / "prompts.txt", out=folder / "out", **FEW)
    return folder


@pytest.fixture
def out(painted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(painted / "out", tmp_path / "out"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def change_rows(out: Path, change: Callable[[list[dict]], None]) -> None:
    path = out / "000001.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


def swap_offsets(rows: list[dict]) -> None:
    rows[0]["offset"], rows[1]["offset"] = rows[1]["offset"], rows[0]["offset"]


def picture_at(out: Path) -> int:
    return pq.read_table(out / "000001.parquet").to_pylist()[1]["offset"]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit in a picture": (lambda out: flip(out / "000001.tar", picture_at(out) + 40), "picture 1 of prompt 1 has"),
    "the first name in the tar": (lambda out: flip(out / "000001.tar", 0), "is no whole tar"),
    "a name in the tar": (lambda out: flip(out / "000001.tar", picture_at(out) - 512), "members are not those"),
    "half a tar": (lambda out: (out / "000001.tar").write_bytes((out / "000001.tar").read_bytes()[:3000]), "expected"),
    "no tar": (lambda out: (out / "000001.tar").unlink(), "000001.tar: missing"),
    "no rows": (lambda out: (out / "000001.parquet").unlink(), "000001.parquet: missing"),
    "no shard": (lambda out: (out / "000001_stats.json").unlink(), "the shard is not finished"),
    "stats of nothing": (lambda out: (out / "000001_stats.json").write_text("[]"), "lack something"),
    "half the stats": (lambda out: (out / "000001_stats.json").write_text('{"ima'), "cannot be read"),
    "rows of another tar": (lambda out: change_rows(out, swap_offsets), "members are not those of the rows"),
    "a row less": (lambda out: change_rows(out, list.pop), "have not 2 pictures, first 1 with 1"),
    "rows without offsets": (lambda out: change_rows(out, lambda rows: [r.pop("offset") for r in rows]), "'offset'"),
    "the wrong shard": (
        lambda out: [shutil.copy(out / f"000000{end}", out / f"000001{end}") for end in ENDINGS],
        "belong elsewhere, first 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_named_and_only_there(out: Path, damage: str) -> None:
    do, message = DAMAGE[damage]
    do(out)
    before = contents(out)
    verdict = verify(out)
    assert verdict.damaged == {1}
    assert any(message in str(problem) for problem in verdict.problems), verdict.problems
    assert contents(out) == before  # it looks, it does not touch


def test_a_whole_folder_has_no_problem(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.gen(["--verify", str(out)])
    assert "6 whole images in 3 shards, nothing wrong" in capsys.readouterr().out


def test_every_byte_of_a_tar_is_watched(out: Path) -> None:
    size = (out / "000000.tar").stat().st_size
    for at in range(0, size, size // 23):
        flip(out / "000000.tar", at)
        assert verify(out).damaged == {0}, at
        flip(out / "000000.tar", at)
    assert not verify(out).problems


def test_repair_mends_what_is_damaged_and_touches_nothing_else(
    out: Path, painted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGE["a bit in a picture"][0](out)
    (out / "000002.tar").unlink()
    (out / "000001.tar.partial").write_text("half")
    untouched = (out / "000000.tar").stat().st_mtime_ns
    with pytest.raises(SystemExit) as stop:
        cli.gen(["--verify", str(out)])
    assert stop.value.code == 1
    assert f"--repair {out} paints 2 shards again" in capsys.readouterr().out
    cli.gen([f"--repair={out}"])
    assert "nothing wrong" in capsys.readouterr().out
    assert contents(out) == contents(painted / "out")
    assert (out / "000000.tar").stat().st_mtime_ns == untouched


def test_repair_without_its_inputs_loses_nothing(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DAMAGE["a bit in a picture"][0](out)
    before = contents(out)
    (tmp_path / "other.txt").write_text("something else\n")
    for flags in (["--prompts", str(tmp_path / "gone.txt")], ["--prompts", str(tmp_path / "other.txt")]):
        with pytest.raises(SystemExit) as stop:
            cli.gen(["--repair", str(out), *flags])
        assert stop.value.code == 2
        assert "--prompts" in capsys.readouterr().err
        assert contents(out) == before


def test_what_no_repair_can_do_is_said(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        verify(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no shards"):
        verify(tmp_path)
    (out / "dataset.json").write_text(json.dumps({"hash": "0", "config": {}}))
    assert [problem.file for problem in verify(out).problems] == ["dataset.json"]
    with pytest.raises(UserError, match="run the stablerep-gen command it was made with"):
        recorded_flags(out)


@pytest.mark.parametrize("argv", [["--verify"], ["--repair", "--seed", "3"], ["--verify", ".", "--seed", "3"]])
def test_the_flags_refuse_in_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.gen(argv)
    assert stop.value.code == 2
    assert argv[0] in capsys.readouterr().err.splitlines()[-1]
