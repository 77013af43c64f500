from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stablerep import atomic, shards
from stablerep.config import UserError
from stablerep.data.index import index_images, index_shards


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def samples(first: int, prompts: int = 3, k: int = 2) -> list[shards.Sample]:
    return [
        shards.Sample(
            prompt_id=p,
            prompt=f"prompt {p} / ../é",
            ending="png",
            pictures=[shards.Picture(i, picture(10 * p + i), {"seed": 7}) for i in range(k)],
        )
        for p in range(first, first + prompts)
    ]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    shards.start_dataset(folder, {"num_images_per_prompt": 2, "seed": 7})
    shards.write_shard(folder, 0, samples(0))
    shards.write_shard(folder, 1, samples(3))
    return folder


def test_index_points_at_the_pictures(out: Path) -> None:
    index = index_images(out)
    assert index.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    for n in range(len(index)):
        data = index.files[index.file[n]].read_bytes()[index.offset[n] : index.offset[n] + index.size[n]]
        value = np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0]
        assert value == 10 * index.group[n] + n % 2


def test_the_tar_is_a_webdataset(out: Path) -> None:
    with tarfile.open(out / "000000.tar") as tar:
        names = tar.getnames()
        about = json.load(tar.extractfile("000000001.json"))
    keys = [name.split(".")[0] for name in names]
    assert keys == sorted(keys)  # WebDataset readers group neighbours of one key
    assert names[:4] == ["000000000.json", "000000000.0.png", "000000000.1.png", "000000001.json"]
    assert about == {"prompt_id": 1, "prompt": "prompt 1 / ../é", "num_images": 2}
    for row in pq.read_table(out / "000000.parquet").to_pylist():
        with tarfile.open(out / "000000.tar") as tar:
            data = tar.extractfile(f"{row['prompt_id']:09}.{row['index']}.png").read()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
    assert not list(out.glob("*.partial"))


def test_same_samples_same_bytes(out: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shards.start_dataset(again, {"num_images_per_prompt": 2, "seed": 7})
    shards.write_shard(again, 0, list(reversed(samples(0))))
    assert (again / "000000.tar").read_bytes() == (out / "000000.tar").read_bytes()


def test_another_config_refuses_and_names_the_difference(out: Path) -> None:
    with pytest.raises(UserError, match="--seed is 7, not 8"):
        shards.start_dataset(out, {"num_images_per_prompt": 2, "seed": 8})
    shards.start_dataset(out, {"num_images_per_prompt": 2, "seed": 7})


def test_a_folder_of_something_else_refuses(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("dear")
    with pytest.raises(UserError, match="thesis"):
        shards.start_dataset(tmp_path, {"seed": 7})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


@pytest.mark.parametrize("damage", ["cut tar", "no tar", "cut rows", "no rows", "stats"])
def test_damage_is_named_with_its_mend(out: Path, damage: str) -> None:
    victim = out / {"cut rows": "000001.parquet", "no rows": "000001.parquet"}.get(damage, "000001.tar")
    if damage == "stats":
        victim = out / "000001_stats.json"
        victim.write_text("{")
    elif damage.startswith("cut"):
        victim.write_bytes(victim.read_bytes()[:100])
    else:
        victim.unlink()
    with pytest.raises(UserError, match=r"000001.* is damaged") as error:
        index_images(out)
    assert "\n" not in str(error.value)
    assert not shards.is_done(out, 1)  # a rerun of the generator mends it
    assert shards.is_done(out, 0)


def test_a_shard_without_stats_does_not_count(out: Path) -> None:
    (out / "000001_stats.json").unlink()
    assert not shards.is_done(out, 1)
    assert len(index_images(out)) == 6


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "sub/a.png", "notes.txt"):
        (tmp_path / name).write_bytes(picture(1))
    index = index_images(tmp_path)
    assert [path.name for path in index.files] == ["b.PNG", "a.png"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        index_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no pictures"):
        index_images(tmp_path)
    shards.start_dataset(tmp_path, {"num_images_per_prompt": 2})
    with pytest.raises(UserError, match="no finished shard"):
        index_images(tmp_path)


def test_full_disk_leaves_no_half_file(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        shards.write_shard(out, 2, samples(6))
    monkeypatch.undo()
    assert not list(out.glob("*.partial"))
    assert not shards.is_done(out, 2)
    assert len(index_images(out)) == 12


def test_a_shard_made_again_does_not_count_while_half_of_it_is_old(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = atomic.write

    def stop_after_the_tar(path: Path, data: bytes) -> None:
        if path.suffix == ".parquet":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(atomic, "write", stop_after_the_tar)
    with pytest.raises(KeyboardInterrupt):
        shards.write_shard(out, 1, samples(3)[:2])  # shorter, but tars are padded: the same length
    assert not shards.is_done(out, 1)


@pytest.mark.parametrize("damage", ["lost", "cut", "another"])
def test_dataset_json_comes_back_if_the_shards_are_of_this_run(out: Path, damage: str) -> None:
    path = out / "dataset.json"
    whole = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(whole[:40] if damage == "cut" else whole.replace(b'"seed": 7', b'"seed": 9'))
    with pytest.raises(UserError, match="no run of ours"):
        shards.start_dataset(out, {"num_images_per_prompt": 2, "seed": 8})
    shards.start_dataset(out, {"num_images_per_prompt": 2, "seed": 7})
    assert path.read_bytes() == whole


def test_a_folder_lost_in_the_middle_takes_no_shard(out: Path) -> None:
    (out / "dataset.json").unlink()
    with pytest.raises(UserError, match="run the same command again"):
        shards.write_shard(out, 2, samples(6))
    assert not list(out.glob("000002*"))


@pytest.mark.parametrize("below", ["file", "file/below"])
def test_out_is_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose a folder"):
        shards.start_dataset(tmp_path / below, {"seed": 7})


def test_a_rejected_picture_has_a_row_and_no_bytes(tmp_path: Path) -> None:
    shards.start_dataset(tmp_path, {"num_images_per_prompt": 1})
    rejected = shards.Picture(0, b"", {"reason": "flat"})
    kept = shards.Picture(1, picture(9), {"reason": ""})
    made = [shards.Sample(0, "a", "png", [rejected, kept]), shards.Sample(1, "b", "png", [rejected])]
    shards.write_shard(tmp_path, 0, made)
    assert len(index_shards(tmp_path)) == 1
    assert [(row["prompt_id"], row["index"], data) for row, data in shards.read_pictures(tmp_path)] == [
        (0, 1, picture(9))
    ]
    with tarfile.open(tmp_path / "000000.tar") as tar:
        assert tar.getnames() == ["000000000.json", "000000000.1.png"]
        assert json.load(tar.extractfile("000000000.json"))["num_images"] == 1
    stats = json.loads((tmp_path / "000000_stats.json").read_text())
    assert (stats["images"], stats["reasons"]) == (1, {"flat": 2})
