"""Shards behind a URL, read through a local cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from stablerep.config import UserError
from stablerep.data.loader import batches, open_pictures
from stablerep.data.sampling import Sampler, open_source
from stablerep.data.shard_cache import ShardCache
from stablerep.storage import RemotePath
from tests.data.pictures import write_shards
from tests.data.test_loader import STRONG

URL = "memory://shelf/run"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Shards here, and the same at URL."""
    fs = fsspec.filesystem("memory")
    if fs.exists("/shelf"):
        fs.rm("/shelf", recursive=True)
    folder = write_shards(tmp_path / "shards", prompts=6, per_prompt=3)
    for path in folder.iterdir():
        fs.pipe_file(f"/shelf/run/{path.name}", path.read_bytes())
    return folder


def images_of(data: str, cache: ShardCache | None = None, steps: int = 3) -> list[np.ndarray]:
    sampler = Sampler([open_source(data, "prompt", 2)], 4, 2, seed=0)
    pictures = open_pictures(sampler, cache=cache)
    with batches(sampler, STRONG, torch.device("cpu"), pictures, first_step=0, last_step=steps) as loader:
        return [batch.images.numpy() for batch in loader]


def test_batches_are_those_of_local_shards(local: Path, tmp_path: Path) -> None:
    expected = images_of(f"{local}:2")
    found = images_of(f"{URL}:2", ShardCache(tmp_path / "cache"))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    copies = sorted(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    assert copies == sorted(path.stat().st_size for path in local.glob("*.tar"))
    fsspec.filesystem("memory").rm_file("/shelf/run/000000.tar")
    fsspec.filesystem("memory").pipe_file("/shelf/run/000000.tar", (local / "000000.tar").read_bytes()[::-1])
    again = images_of(URL, ShardCache(tmp_path / "cache"))  # what is in the cache is not fetched again
    assert all(np.array_equal(one, other) for one, other in zip(again, expected, strict=True))
    with pytest.raises(UserError, match=r"000000\.tar is damaged: its digest is not that of its stats"):
        images_of(URL, ShardCache(tmp_path / "other"))


def test_a_shard_cut_short_is_found_before_it_is_read(local: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/shelf/run/000001.tar", (local / "000001.tar").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"000001\.tar is damaged: \d+ bytes expected, 1000 found"):
        images_of(URL)


def test_the_cache_keeps_to_its_size_and_drops_what_was_used_first(tmp_path: Path) -> None:

    fs = fsspec.filesystem("memory")
    files = {}
    for name in "abc":
        data = name.encode() * 1000
        fs.pipe_file(f"/shelf/{name}.tar", data)
        files[name] = (RemotePath(f"memory://shelf/{name}.tar"), hashlib.sha256(data).hexdigest(), len(data))
    cache = ShardCache(tmp_path, most_bytes=2500)
    a = cache.local(*files["a"])
    b = cache.local(*files["b"])
    assert cache.local(*files["a"]) == a  # used again: b is now the oldest
    c = cache.local(*files["c"])
    assert a.exists() and c.exists() and not b.exists()
    assert cache.local(*files["b"]).read_bytes() == b"b" * 1000
    with pytest.raises(UserError, match=r"--cache-gb 9\.99e-07 is less than one shard"):
        ShardCache(tmp_path, most_bytes=999).local(*files["a"])
