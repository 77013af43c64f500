"""The store of engines: whole or not there, built once, and never a crash over what lies in it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from stablerep.config import UserError
from stablerep.engines.store import RECORD, BrokenEntry, EngineKey, Entry, Store, Verification

KEY = EngineKey(
    module="unet",
    engine="onnx",
    builder="exporter 1",
    weights="0123",
    graph="4567",
    dtype="fp32",
    most_rows=8,
    gpu="NVIDIA H100",
    compute_capability="9.0",
)


def write_plan(folder: Path) -> None:
    (folder / "model.plan").write_bytes(b"a plan" * 100)


def build(store: Store, key: EngineKey = KEY) -> Entry:
    with store.lock(key.name):
        return store.build(key, write_plan)


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines")
    assert (store.entries(), store.find(KEY)) == ([], None)
    entry = build(store)
    assert store.find(KEY) == entry
    assert (entry.bytes, entry.damage(thorough=True)) == (600, None)
    kept = entry.with_verified("cpu", Verification(ok=True))
    assert store.entries() == [kept]
    assert [path.name for path in store.folder.iterdir() if not path.name.startswith(".")] == [KEY.name]


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "0124"},
        {"graph": "4568"},
        {"builder": "exporter 2"},
        {"dtype": "fp16"},
        {"flags": ("tf32",)},
        {"gpu": "NVIDIA H200"},
        {"compute_capability": "10.0"},
        {"module": "vae_decoder"},
        {"engine": "trt"},
        {"most_rows": 9},
    ],
)
def test_an_engine_of_another_recipe_is_not_taken(tmp_path: Path, change: dict) -> None:
    store = Store(tmp_path)
    build(store)
    other = dataclasses.replace(KEY, **change)
    assert store.find(other) is None
    assert other.name != KEY.name


def test_names_stay_what_they_were() -> None:
    """Another name is a rebuild for everyone who has the engine."""
    assert KEY.name == "unet-onnx-823a28884540"
    plan = dataclasses.replace(KEY, module="vae_decoder", most_rows=None, flags=("strongly typed", "no tf32"))
    assert plan.name == "vae_decoder-onnx-d297c341bdc4"


def test_an_engine_with_room_for_more_rows_serves(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for rows in (32, 16, 8):
        build(store, dataclasses.replace(KEY, most_rows=rows))
    found = store.find(dataclasses.replace(KEY, most_rows=12))
    assert found is not None and found.key.most_rows == 16


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("model.plan", None, "model.plan is missing"),
        ("model.plan", b"short", "has 5 bytes, not 600"),
        ("model.plan", b"a flip" * 100, "damaged"),
        (RECORD, None, "is missing"),
        (RECORD, b'{"format": 1', "cannot be read"),
        (RECORD, b'{"format": 99}', "another version"),
        (RECORD, b"[]", "cannot be read"),
        (RECORD, b"\xff\xfe", "cannot be read"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, data: bytes | None, expected: str) -> None:
    store = Store(tmp_path)
    path = build(store).folder / name
    path.unlink() if data is None else path.write_bytes(data)
    [entry] = store.entries()
    reason = entry.reason if isinstance(entry, BrokenEntry) else entry.damage(thorough=True)
    assert reason is not None and expected in reason
    assert build(store).damage(thorough=True) is None  # it is replaced whole


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "other.plan"])
def test_a_record_names_no_paths(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    record = build(store).folder / RECORD
    values = json.loads(record.read_text())
    record.write_text(json.dumps(values | {"files": {name: {"bytes": 1, "sha256": ""}}}))
    assert isinstance(store.entries()[0], BrokenEntry)


def test_a_record_of_another_engine(tmp_path: Path) -> None:
    store = Store(tmp_path)
    os.rename(build(store).folder, tmp_path / "unet-onnx-000000000000")
    [entry] = store.entries()
    assert isinstance(entry, BrokenEntry) and "describes another engine" in entry.reason


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def full(folder: Path) -> None:
        write_plan(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), store.lock(KEY.name):
        store.build(KEY, full)
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]


def slow_builder(folder: Path, counted: Path) -> None:
    store = Store(folder)
    with store.lock(KEY.name):
        if store.find(KEY) is None:
            with counted.open("a") as file:
                file.write("built\n")
            store.build(KEY, lambda partial: (time.sleep(0.3), write_plan(partial))[-1])


def hanging_builder(folder: Path) -> None:
    def hang(partial: Path) -> None:
        write_plan(partial)
        time.sleep(60)

    store = Store(folder)
    with store.lock(KEY.name):
        store.build(KEY, hang)


def test_of_two_builders_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    folder, counted = tmp_path / "engines", tmp_path / "counted"
    builders = [context.Process(target=slow_builder, args=(folder, counted)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(30)
        assert builder.exitcode == 0
    assert counted.read_text() == "built\n"
    assert Store(folder).find(KEY) is not None


def test_a_killed_builder_lets_go_and_what_it_left_goes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    builder = multiprocessing.get_context("forkserver").Process(target=hanging_builder, args=(tmp_path,))
    builder.start()
    assert builder.pid is not None
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*/model.plan")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert store.entries() == []  # half an engine is none
    assert store.remove_left_behind() == [KEY.name]
    assert store.find(KEY) is None
    assert build(store).damage(thorough=True) is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--engine-dir .*file.* cannot be written"), Store(tmp_path / "file").lock("x"):
        pass


def test_a_new_engine_in_its_place_is_not_discarded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = dataclasses.replace(build(store), built="long ago")
    store.discard(old)
    entry = store.find(KEY)
    assert entry is not None
    store.discard(entry)
    assert store.find(KEY) is None
