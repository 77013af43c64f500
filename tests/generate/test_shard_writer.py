"""Runs to a URL: whole whatever fails or is killed, nothing painted twice, nothing of another run touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stablerep
from stablerep import atomic, cli, shards, storage
from stablerep.config import UserError
from stablerep.data.index import index_images
from stablerep.generate import worker
from stablerep.generate.pipeline import Pipeline
from stablerep.generate.shard_writer import MOST_WAITING, open_writer, read_done
from stablerep.generate.verify import verify
from stablerep.storage import place
from tests.data.pictures import write_shards
from tests.generate.upload_driver import CONFIG, SHARDS, run, sample
from tests.shelf import Shelf

FEW = {"num_images_per_prompt": 1, "num_inference_steps": 1, "prompts_per_shard": 2, "batch_size": 4, "device": "cpu"}
DRIVER = Path(__file__).with_name("upload_driver.py")


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0))


@pytest.fixture
def quick(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "open_pipeline", lambda *_, **__: pipeline)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "summary.json"}


def remote_contents(url: str) -> dict[str, bytes]:
    folder = place(url)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "summary.json"}


def staged(staging: Path) -> list[str]:
    return sorted(path.name for path in staging.glob("*/*"))


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What a local run writes."""
    run(str(tmp_path / "whole"), tmp_path)
    return contents(tmp_path / "whole")


def test_killed_at_each_step(tmp_path: Path, whole: dict[str, bytes]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    (tmp_path / "killed").mkdir()
    command = [sys.executable, str(DRIVER), str(tmp_path / "killed")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > SHARDS * 3 * 4  # each file: written, renamed, uploaded half, deleted
    for number in range(int(finished.stdout)):
        folder = tmp_path / "killed" / str(number)
        assert contents(folder / "remote") == whole, number
        assert staged(folder / "staging") == [], number


def fail_at(monkeypatch: pytest.MonkeyPatch, first: int, times: float) -> Callable[[], int]:
    """Have operations fail from the first-th on; returns how many there were."""
    seen, lock = [0], threading.Lock()

    def before(operation: str, path: str) -> None:
        with lock:
            seen[0] += 1
            if first <= seen[0] - 1 < first + times:
                raise PermissionError(f"{operation}: Access Denied")

    monkeypatch.setattr(Shelf, "before", staticmethod(before))
    return lambda: seen[0]


def test_one_failure_anywhere_does_not_show(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 0
    while True:
        seen = fail_at(monkeypatch, number, times=1)
        assert run(f"shelf://{tmp_path}/{number}", tmp_path / "staging") == list(range(SHARDS))
        if seen() <= number:
            break
        assert contents(tmp_path / str(number)) == whole
        assert staged(tmp_path / "staging") == []
        number += 1
    assert number > SHARDS * 7


def test_a_storage_that_is_lost_for_good_costs_nothing_that_was_finished(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    number, waited = 0, 0
    while True:
        out, staging = tmp_path / str(number), tmp_path / f"staging{number}"
        fail_at(monkeypatch, number, times=float("inf"))
        try:
            run(f"shelf://{out}", staging)
            break
        except UserError as error:
            assert "Access Denied" in str(error) and "\n" not in str(error)
        monkeypatch.undo()
        monkeypatch.setattr(storage, "WAITS", (0.0, 0.0))
        safe = set(read_done(place(f"shelf://{out}")))
        for folder in staging.glob("*/"):
            safe |= set(shards.read_done(folder)) if folder.is_dir() else set()
            waited += len(shards.read_done(folder)) if folder.is_dir() else 0
        painted = run(f"shelf://{out}", staging)
        assert not safe & set(painted)
        assert safe | set(painted) == set(range(SHARDS))
        assert contents(out) == whole
        assert staged(staging) == []
        number += 1
    assert number > SHARDS * 7 and waited > 0


def test_no_more_shards_wait_than_agreed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network stands still: the writer waits, which the progress line counts, and the disk does not fill."""
    go, out = threading.Event(), place(f"shelf://{tmp_path}/out")
    shards.start_dataset(out, CONFIG)
    with open_writer(out, tmp_path / "staging") as writer:
        monkeypatch.setattr(Shelf, "before", staticmethod(lambda operation, path: go.wait(20) and None))
        for shard in range(MOST_WAITING):
            writer.write(shard, [sample(shard)])
        blocked = threading.Thread(target=writer.write, args=(MOST_WAITING, [sample(MOST_WAITING)]))
        blocked.start()
        blocked.join(0.3)
        assert blocked.is_alive()
        assert len(list((tmp_path / "staging").glob("*/*.tar"))) == MOST_WAITING + 1
        go.set()
        writer.flush()
        blocked.join()
        writer.flush()
    assert sorted(read_done(out)) == list(range(MOST_WAITING + 1))


def test_what_is_done_is_one_listing_and_one_read_of_the_stats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(f"shelf://{tmp_path}/out", tmp_path / "staging")
    asked: list[str] = []
    monkeypatch.setattr(Shelf, "before", staticmethod(lambda operation, path: asked.append(operation)))
    assert sorted(read_done(place(f"shelf://{tmp_path}/out"))) == list(range(SHARDS))
    assert asked.count("ls") == 1 and asked.count("cat_file") == SHARDS and len(asked) == 1 + SHARDS


@pytest.mark.parametrize("damage", ["no stats", "no tar", "half a tar", "no rows", "half the stats", "empty stats"])
def test_a_shard_that_is_not_whole_is_painted_again(tmp_path: Path, whole: dict[str, bytes], damage: str) -> None:
    url, out = f"shelf://{tmp_path}/out", tmp_path / "out"
    run(url, tmp_path / "staging")
    {
        "no stats": lambda: (out / "000001_stats.json").unlink(),
        "no tar": lambda: (out / "000001.tar").unlink(),
        "half a tar": lambda: (out / "000001.tar").write_bytes(b"half"),
        "no rows": lambda: (out / "000001.parquet").unlink(),
        "half the stats": lambda: (out / "000001_stats.json").write_bytes(whole["000001_stats.json"][:30]),
        "empty stats": lambda: (out / "000001_stats.json").write_bytes(b"[]"),
    }[damage]()
    assert run(url, tmp_path / "another machine") == [1]
    assert contents(out) == whole


def test_a_shard_made_again_is_never_half_new_and_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, out = f"shelf://{tmp_path}/out", tmp_path / "out"
    run(url, tmp_path / "staging")
    counted = {}

    def look(operation: str, path: str) -> None:
        if operation == "put_file":
            counted[Path(path).name] = (out / "000001_stats.json").exists()

    monkeypatch.setattr(Shelf, "before", staticmethod(look))
    run(url, tmp_path / "staging", again=[1])
    assert counted == {"000001.tar": False, "000001.parquet": False, "000001_stats.json": False, "summary.json": True}


def test_two_processes_or_machines_at_once(tmp_path: Path) -> None:
    url = f"shelf://{tmp_path}/out"
    shards.start_dataset(place(url), CONFIG)
    with open_writer(place(url), tmp_path / "staging") as writer:
        with pytest.raises(UserError, match="another stablerep-gen on this machine"):
            run(url, tmp_path / "staging")
        run(url, tmp_path / "another machine")
        before = contents(tmp_path / "out")
        with pytest.raises(UserError, match="another machine writes to the same --out"):
            writer.write(0, [sample(0)])
            writer.flush()
    assert contents(tmp_path / "out") == before
    assert run(url, tmp_path / "staging") == []  # and what waited here is not wanted any more
    assert contents(tmp_path / "out") == before and staged(tmp_path / "staging") == []


def test_shards_of_another_run_in_staging_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"shelf://{tmp_path}/out"
    before = Shelf.before

    def no_tars(operation: str, path: str) -> None:
        if path.endswith(".tar"):
            raise ConnectionError("gone")

    monkeypatch.setattr(Shelf, "before", staticmethod(no_tars))
    with pytest.raises(UserError):
        run(url, tmp_path / "staging")
    monkeypatch.setattr(Shelf, "before", staticmethod(before))
    (tmp_path / "out/dataset.json").unlink()  # the user gives that run up
    waiting = staged(tmp_path / "staging")
    with pytest.raises(UserError, match=r"holds \d finished shards of another run"):
        run(url, tmp_path / "staging", config=CONFIG | {"seed": 8})
    assert staged(tmp_path / "staging") == waiting


def test_a_full_local_disk(tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    write = atomic.write

    def full(path: Path, data: bytes) -> None:
        if path.name == "000001.parquet":
            raise OSError(28, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(atomic, "write", full)
    with pytest.raises(OSError, match="No space left"):
        run(f"shelf://{tmp_path}/out", tmp_path / "staging")
    monkeypatch.setattr(atomic, "write", write)
    assert 0 not in run(f"shelf://{tmp_path}/out", tmp_path / "staging")
    assert contents(tmp_path / "out") == whole


def argv(prompts: Path, out: str, staging: Path, **more: object) -> list[str]:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in (FEW | more).items()]
    return ["--prompts", str(prompts), "--out", out, "--staging", str(staging), *words]


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.gen(command)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 bucket on this machine."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.usefixtures("quick")
def test_a_run_in_s3_as_a_user_has_it(
    bucket: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import s3fs

    url, staging = f"{bucket}/run", tmp_path / "staging"
    stablerep.generate(prompts=prompts, out=tmp_path / "local", **FEW)
    local = contents(tmp_path / "local")
    command = argv(prompts, url, staging)
    cli.gen([*command, "--dry-run"])
    assert not place(url).exists() and not staging.exists()
    cli.gen(command)
    assert f"4 images in {url} (4 made" in capsys.readouterr().out
    assert staged(staging) == []
    found = remote_contents(url)
    dataset = json.loads(found["dataset.json"])
    assert str(tmp_path / "staging") not in str(dataset)
    del dataset["run"]["flags"]["device"], found["dataset.json"]  # a run records its own flags
    assert found == {name: data for name, data in local.items() if name != "dataset.json"}

    fs = s3fs.S3FileSystem()
    fs.rm_file("bucket/run/000001_stats.json")
    cli.gen([*command, "--dry-run"])
    assert "images     4, 2 of them there already" in capsys.readouterr().out
    summary = stablerep.generate(prompts=prompts, out=url, staging=tmp_path / "another machine", **FEW)
    assert (summary.images, summary.images_made) == (4, 2)
    assert "its --seed is 0, not 1; choose another --out" in refused([*command, "--seed", "1"], capsys)
    prompts.write_text(prompts.read_text().replace("dress", "shirt"))
    assert "row 3 was 'a photo of a busy dress', is 'a photo of a busy shirt'" in refused(command, capsys)
    prompts.write_text(prompts.read_text().replace("shirt", "dress"))

    cli.gen(["--verify", url])
    assert f"{url}: 4 whole images in 2 shards, nothing wrong" in capsys.readouterr().out
    tar = bytearray(local["000000.tar"])
    tar[2000] ^= 0xFF
    fs.pipe_file("bucket/run/000000.tar", bytes(tar))
    fs.rm_file("bucket/run/000001.tar")
    verdict = verify(place(url))
    assert verdict.damaged == {0, 1}
    cli.gen(["--repair", url, "--staging", str(staging)])
    assert "nothing wrong" in capsys.readouterr().out
    assert remote_contents(url).items() >= found.items()
    fs.pipe_file("bucket/thesis/thesis.doc", b"dear")
    assert "thesis.doc" in refused(argv(prompts, f"{bucket}/thesis", staging), capsys)
    assert "The specified bucket does not exist" in refused(argv(prompts, "s3://nothing/run", staging), capsys)
    assert not fs.exists("nothing")


@pytest.mark.usefixtures("quick")
def test_a_sweep_in_memory(prompts: Path, tmp_path: Path) -> None:
    common = {"prompts": prompts, "out": "memory://sweeps/one", "staging": tmp_path / "staging", **FEW}
    sweep = stablerep.generate(guidance_scale=[1, 2.5], **common)
    assert [str(each.out) for each in sweep.runs] == [f"memory://sweeps/one/guidance_{scale}" for scale in ("1", "2.5")]
    stablerep.generate(prompts=prompts, out=tmp_path / "local", guidance_scale=2.5, **FEW)
    assert remote_contents("memory://sweeps/one/guidance_2.5") == contents(tmp_path / "local")
    again = stablerep.generate(guidance_scale=[1, 2.5, 4], **common)
    assert [each.images_made for each in again.runs] == [0, 0, 4]
    for changes, message in (
        ({"guidance_scale": [4, 8], "seed": 1}, r"guidance_1 holds another run: its --seed is 0, not 1"),
        ({"guidance_scale": 2}, "holds a sweep .guidance_1, guidance_2.5, guidance_4.; choose another --out"),
        ({"guidance_scale": [1, 2], "out": "memory://sweeps/one/guidance_1"}, "holds one run; choose another --out"),
        ({"guidance_scale": [1, 2], "out": "memory://sweeps"}, r"holds files that are no run of ours \(one\)"),
    ):
        with pytest.raises(UserError, match=message):
            stablerep.generate(**common | changes)


@pytest.mark.usefixtures("quick")
def test_a_file_url_is_the_local_folder(prompts: Path, tmp_path: Path) -> None:
    summary = stablerep.generate(prompts=prompts, out=f"file://{tmp_path}/out", **FEW)
    assert summary.out == tmp_path / "out"
    assert len(index_images(tmp_path / "out")) == 4


def test_shards_in_a_bucket_are_trained_on(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s3fs = pytest.importorskip("s3fs")
    write_shards(tmp_path / "shards", prompts=4, per_prompt=2)
    s3fs.S3FileSystem().put(str(tmp_path / "shards"), "bucket/shelf", recursive=True)
    url, size = (
        f"{bucket}/shelf",
        ["--views-per-prompt", "2", "--batch-size", "4", "--steps", "2", "--image-size", "32"],
    )
    small = ["--arch", "test_resnet", "--head-hidden", "8", "--head-out", "8", "--device", "cpu"]
    cli.train(["--data", url, "--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache"), *size, *small])
    assert f"{url}: 8 pictures" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
    with pytest.raises(SystemExit):
        cli.evaluate(["--checkpoint", "pixels", "--data", url, "--out", str(tmp_path / "measured")])
    assert f"--data {url} has no labels" in capsys.readouterr().err
