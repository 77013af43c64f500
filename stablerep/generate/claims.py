"""Who paints which shard, where several processes or machines share a folder: by files that only one can create.

    OUT/.claims/000003.0    whoever paints shard 3: host, process, its start; the file's mtime is a heartbeat

A claim is dead when its process has gone (on this machine), or when its mtime stood still for STALE_SECONDS by our own
clock: no two clocks are compared. It is taken over by creating the next one, 000003.1, which again only one can: there
is no moment at which two have it. Whoever was only stopped for so long finds its claim lost before it writes. Nothing
here needs locks, which network file systems may lack.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stablerep import shards
from stablerep.storage import Folder

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 180.0  # file systems over a network show a new mtime up to 60 s late
POLL_SECONDS = 0.5
SILENT_SECONDS = 3.0

log = logging.getLogger("stablerep.generate")


class Claims:
    """What this process has claimed in a folder, and what others have."""

    def __init__(self, out: Path) -> None:
        self._out, self._folder = out, out / shards.CLAIMS
        self._found_out = out.exists()
        self._us = {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_of(os.getpid())}
        self._us["machine"] = _machine()
        self._held: dict[str, Path] = {}
        self._seen: dict[Path, tuple[int, float]] = {}  # mtime, and since when we know it
        self._ended = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, daemon=True)

    def take(self, name: str) -> bool:
        """Claim a shard, by its name, unless someone alive has."""
        shards.make_folder(self._out)
        latest = self._latest(name)
        if latest is not None and not self._is_dead(latest):
            return False
        path = self._folder / f"{name}.{0 if latest is None else _generation(latest) + 1}"
        while True:
            try:
                with path.open("x") as file:
                    json.dump(self._us, file)
            except FileExistsError:
                return False
            except FileNotFoundError:  # whoever was here last took the folder away
                shards.make_folder(self._folder)
                continue
            break
        if latest is not None:
            log.info("%s: going on in the place of %s, which has gone", self._out / name, describe(_read(latest)))
        self._held[name] = path
        return True

    def holds(self, name: str) -> bool:
        """Whether a claim is still ours: who stands still for too long loses it."""
        return name in self._held and self._latest(name) == self._held[name]

    def release(self, name: str) -> None:
        """Give a claim back, with those of dead processes that it took over."""
        own = self._held.pop(name)
        # Ours last: until then nobody takes it for unclaimed.
        for path in sorted(self._all(name), key=_generation):
            if _generation(path) <= _generation(own):
                path.unlink(missing_ok=True)

    def holder(self, name: str) -> str:
        """Who has claimed a shard, in words."""
        latest = self._latest(name)
        return describe(_read(latest)) if latest is not None else "another process"

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold a claim, after waiting for whoever has it."""
        spoken_at = time.monotonic() + SILENT_SECONDS
        while not self.take(name):
            if time.monotonic() > spoken_at:
                log.info("waiting for %s, which is about to %s this folder", self.holder(name), name)
                spoken_at = float("inf")
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            self.release(name)

    def __enter__(self) -> Claims:
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heartbeat.join()
        for name in list(self._held):
            self.release(name)
        with contextlib.suppress(OSError):  # it never was there, or others are at work still
            for path in list(self._folder.iterdir()):
                if self._is_dead(path):
                    path.unlink(missing_ok=True)
            self._folder.rmdir()
            if not self._found_out:
                self._out.rmdir()  # it is empty only where the run was refused

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            for path in list(self._held.values()):
                with contextlib.suppress(OSError):  # released just now; or not reachable, and then nobody sees it
                    os.utime(path)

    def _all(self, name: str) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            return [path for path in self._folder.iterdir() if path.stem == name]
        return []

    def _latest(self, name: str) -> Path | None:
        return max(self._all(name), key=_generation, default=None)

    def _is_dead(self, path: Path) -> bool:
        try:
            mtime = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False  # released; the shard is done, or to be claimed at the next look
        owner = _read(path)
        if owner.get("machine") == self._us["machine"] and _start_of(owner["pid"]) != owner["started"]:
            return True
        known, since = self._seen.get(path, (None, 0.0))
        if mtime != known:
            self._seen[path] = (mtime, time.monotonic())
            return False
        return time.monotonic() - since > STALE_SECONDS


class SoleClaims:
    """Of a folder behind a URL: there shard_writer lets only one process of a machine in."""

    def take(self, name: str) -> bool:
        return True

    def holds(self, name: str) -> bool:
        return True

    def release(self, name: str) -> None:
        pass

    def holder(self, name: str) -> str:
        raise AssertionError("nobody else")

    def alone(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@contextlib.contextmanager
def open_claims(out: Folder) -> Iterator[Claims | SoleClaims]:
    """Claims in the folder of a run; whatever is held at the end is given back."""
    if isinstance(out, Path):
        with Claims(out) as claims:
            yield claims
    else:
        yield SoleClaims()


def describe(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"


def _read(path: Path) -> dict[str, Any]:
    """Host, process and start; nothing of a claim that is just being written, or was when its process died."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _generation(path: Path) -> int:
    return int(path.suffix[1:])


def _start_of(pid: int) -> str | None:
    """When a process began, which tells it from a later one of the same number; None if it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie writes nothing any more


def _machine() -> str:
    """Where process numbers mean the same: a boot of a machine, and in it a container."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
