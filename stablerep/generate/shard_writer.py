"""Where finished shards go: into the folder of the run, or, where --out is a URL, through a staging folder to there.

    STAGING/<digest of the URL>/   dataset.json as it is remotely, and finished shards that are not up yet

A shard is written whole there, then goes up: tar, rows, and the stats last, when the others have been seen to be there,
so that remotely too a shard is done if and only if its stats exist. Then the local copy goes. What a stopped run left
in staging, the next one with the same --out uploads first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stablerep import atomic, shards
from stablerep.config import UserError
from stablerep.storage import Folder, RemotePath, read_all

DEFAULT_STAGING = "~/.cache/stablerep/staging"
MOST_WAITING = 2  # finished shards; where the network is slower than painting, more would only fill the disk

log = logging.getLogger("stablerep.generate")


class ShardWriter:
    """Writes the shards of one run; knows which are done."""

    def __init__(self, folder: Path, done: dict[int, dict[str, Any]], uploader: Uploader | None = None) -> None:
        self.done = done  # the stats of each whole shard
        self._folder, self._uploader = folder, uploader

    def missing(self, count: int, repaint: Collection[int] = ()) -> list[int]:
        """Those of the first count shards that are to be painted; repaint are damaged, though their stats are there."""
        repaint = set(repaint) - (self._uploader.recovered if self._uploader else set())
        return [shard for shard in range(count) if shard in repaint or shard not in self.done]

    def find(self, shard: int) -> bool:
        """Look again whether a shard has been finished by another process since."""
        if self._uploader is None and shard not in self.done:
            self.done |= shards.read_done(self._folder, [shard])
        return shard in self.done

    def write(self, shard: int, samples: Sequence[shards.Sample], images_per_prompt: int = 0) -> None:
        """Write one shard whole; where it goes on to a URL, waits while MOST_WAITING others wait for that too."""
        self.done[shard] = shards.write_shard(self._folder, shard, samples, images_per_prompt)
        if self._uploader:
            self._uploader.add(shard)

    def flush(self) -> None:
        """Return when every shard is where it belongs."""
        if self._uploader:
            self._uploader.flush()


@contextlib.contextmanager
def open_writer(out: Folder, staging: Path | None = None) -> Iterator[ShardWriter]:
    """A writer for the run in out, whose dataset.json is there.

    Raises:
        UserError: another process on this machine writes there, or staging holds finished shards of another run.
    """
    if isinstance(out, Path):
        yield ShardWriter(out, shards.read_done(out))
        return
    below = Path(staging or DEFAULT_STAGING).expanduser()
    folder = below / hashlib.sha256(str(out).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, out), Uploader(out, folder) as uploader:
        uploader.recover()
        yield ShardWriter(folder, uploader.done, uploader)


def read_done(out: Folder) -> dict[int, dict[str, Any]]:
    """The stats of each whole shard; of a remote folder from one listing and the stats alone: no tar or row is read."""
    return shards.read_done(out) if isinstance(out, Path) else _done_among(out, out.sizes())


def _done_among(out: RemotePath, sizes: dict[str, int]) -> dict[int, dict[str, Any]]:
    done = {}
    names = [name for name in sizes if fnmatchcase(name, shards.STATS_PATTERN)]
    for name, data in zip(names, read_all([out / name for name in names]), strict=True):
        stem = name.removesuffix("_stats.json")
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: the shard is painted again
            stats = json.loads(data)
            if sizes.get(f"{stem}.tar") == stats["tar_bytes"] and f"{stem}.parquet" in sizes:
                done[int(stem)] = stats
    return done


class Uploader:
    """Takes finished shards from a staging folder to a URL, in a thread of its own."""

    def __init__(self, out: RemotePath, folder: Path) -> None:
        self._out, self._folder = out, folder
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._sizes = out.sizes()
        self.done = _done_among(out, self._sizes)
        self._dataset = (out / "dataset.json").read_bytes()
        self.recovered: set[int] = set()
        left = shards.read_done(folder)
        if any(stats["run"] != json.loads(self._dataset)["hash"] for stats in left.values()):
            raise UserError(
                f"{folder} holds {len(left)} finished shards of another run that were on their way to {out}; "
                "run that command again, or delete the folder if they are not wanted"
            )

    def add(self, shard: int) -> None:
        """Have a shard of the staging folder uploaded; what stopped an earlier upload surfaces here."""
        while self._waiting and (len(self._waiting) >= MOST_WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._upload, shard))

    def flush(self) -> None:
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if left := shards.read_done(self._folder):
            log.info("%d finished shards wait in %s; the same command uploads them", len(left), self._folder)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)  # it may have gone

    def recover(self) -> None:
        """Upload the finished shards that an earlier run left, and clear away its half ones."""
        left = shards.read_done(self._folder)
        wanted = {shard: stats for shard, stats in left.items() if shard not in self.done}
        for path in self._folder.iterdir():
            if not any(path.name.startswith(f"{shard:06}") for shard in wanted):
                path.unlink()
        atomic.write(self._folder / "dataset.json", self._dataset)
        if wanted:
            log.info("uploading %d shards that an earlier run left in %s", len(wanted), self._folder)
        for shard, stats in wanted.items():
            self._upload(shard)
            self.done[shard] = stats
            self.recovered.add(shard)

    def _upload(self, shard: int) -> None:
        tar, rows, stats = (f"{shard:06}{ending}" for ending in (".tar", ".parquet", "_stats.json"))
        if stats in self._sizes:  # made again: it must not count as done while one of its files is new and another old
            (self._out / stats).unlink(missing_ok=True)
        elif (self._out / stats).exists():
            raise UserError(
                f"{self._out}/{stats} has come there since this run began: another machine writes to the same --out; "
                "let one of them finish"
            )
        for name in (tar, rows, stats):
            (self._out / name).upload(self._folder / name)
        for name in (stats, tar, rows):
            (self._folder / name).unlink()


@contextlib.contextmanager
def _locked(folder: Path, out: RemotePath) -> Iterator[None]:
    """Hold the lock of a staging folder; the system releases it when this process ends, however it does."""
    try:
        lock = FileLock(folder.with_suffix(".lock")).acquire(blocking=False)
    except Timeout:
        raise UserError(f"--out {out} is written to by another stablerep-gen on this machine; let it finish") from None
    with lock:
        yield
