"""The folder of built engines: one folder an engine, named by what it was made from, whole or not there.

    unet-onnx-0123456789abcdef/
        engine.json     what it was made from, how large its files are, what verifying it found
        model.onnx      (or model.plan)
    .locks/             a file a name; a builder holds its lock
    .measured/          what verifying an engine found of which nothing is kept, a file a module, machine and version

File names are ours; nothing that a file says is ever used as a path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stablerep import atomic
from stablerep.config import UserError, fingerprint

DEFAULT_FOLDER = "~/.cache/stablerep/engines"
RECORD = "engine.json"
FILES = ("model.onnx", "model.onnx.data", "model.plan")
MEASURED = ".measured"
FORMAT = 1

log = logging.getLogger("stablerep.generate")


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything an engine is made from; equal keys make interchangeable engines."""

    module: str  # unet or vae_decoder
    engine: str  # onnx or trt
    builder: str  # exporter and compiler with their versions
    weights: str  # digest of the weights, in dtype
    graph: str  # digest of what decides the graph
    dtype: str  # fp32, fp16 or bf16
    most_rows: int | None  # shape profile: 1 to this many rows, fastest at this many; None: any number
    flags: tuple[str, ...] = ()
    gpu: str = "any"
    compute_capability: str = "any"

    @property
    def name(self) -> str:
        return f"{self.module}-{self.engine}-{fingerprint(self.as_record())}"

    def serves(self, wanted: EngineKey) -> bool:
        """Whether an engine of this key can stand in: the same, but for room for more rows."""
        same = dataclasses.replace(self, most_rows=wanted.most_rows) == wanted
        return same and (self.most_rows is None or (wanted.most_rows or 0) <= self.most_rows)

    def as_record(self) -> dict[str, Any]:
        """The fields as engine.json and the name have them, where the module is called part."""
        values = dataclasses.asdict(self)
        return {"part": values.pop("module"), **values}

    @classmethod
    def from_record(cls, values: dict[str, Any]) -> EngineKey:
        values = {"module": values["part"], **values, "flags": tuple(values["flags"])}
        del values["part"]
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What comparing an engine with torch found on one device."""

    cosine: float | None = None  # the least of a row; None: the outputs could not be compared
    max_error: float | None = None  # as a share of the reference's largest number
    rows: int | None = None
    ok: bool
    reason: str | None = None  # why it is not
    torch_ms: float | None = None  # measured where it is
    engine_ms: float | None = None

    def as_record(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class StoredFile:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One engine on the disk."""

    folder: Path
    key: EngineKey
    files: dict[str, StoredFile]
    built: str
    build_seconds: float
    verified: dict[str, Verification]  # by device and library

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def damage(self, *, thorough: bool) -> str | None:
        """What is wrong with the files; thorough reads them whole."""
        for name, file in self.files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != file.bytes:
                return f"{name} has {path.stat().st_size} bytes, not {file.bytes}"
            if thorough and _sha256(path) != file.sha256:
                return f"{name} is damaged: its bytes are not those that were written"
        return None

    def with_verified(self, device: str, result: Verification) -> Entry:
        """The entry with what verifying it on a device found, on the disk too."""
        entry = dataclasses.replace(self, verified=self.verified | {device: result})
        atomic.write(self.folder / RECORD, _record(entry))
        return entry


@dataclass(frozen=True)
class BrokenEntry:
    """A folder of the store that is no engine any more."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Store:
    folder: Path

    def entries(self) -> list[Entry | BrokenEntry]:
        """Whatever is there, by name."""
        found = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [_read(path) for path in found if path.is_dir() and not path.name.startswith(".")]

    def find(self, key: EngineKey) -> Entry | None:
        """The engine of a key, or one that serves it with the least room to spare."""
        fits = [e for e in self.entries() if isinstance(e, Entry) and e.key.serves(key)]
        return min(fits, key=lambda entry: entry.key.most_rows or 0, default=None)

    def build(self, key: EngineKey, make: Callable[[Path], None]) -> Entry:
        """Have `make(folder)` write some of FILES and take them in. The caller holds `lock(key.name)`."""
        partial = self.folder / f".{key.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # a builder was killed here
        partial.mkdir(parents=True)
        start = time.perf_counter()
        try:
            make(partial)
            files = {name: _store_file(partial / name) for name in FILES if (partial / name).exists()}
            built = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            final = self.folder / key.name
            entry = Entry(final, key, files, built, round(time.perf_counter() - start, 1), {})
            atomic.write(partial / RECORD, _record(entry))
            self.remove(final)
            os.replace(partial, final)
            atomic.sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk: give back what the half engine took
            raise
        return entry

    def remove(self, folder: Path) -> None:
        """Take an engine away; it is gone at once for everyone else, and then from the disk."""
        assert folder.parent == self.folder
        with contextlib.suppress(FileNotFoundError):
            away = self.folder / f".{folder.name}.removed"
            shutil.rmtree(away, ignore_errors=True)
            os.replace(folder, away)
            shutil.rmtree(away)

    def discard(self, entry: Entry | BrokenEntry) -> None:
        """Remove an engine, unless another process has put a new one in its place."""
        with self.lock(entry.folder.name):
            if entry in self.entries():
                self.remove(entry.folder)

    def remove_left_behind(self) -> list[str]:
        """Remove what builders left that were killed; returns the engines they worked at."""
        names = []
        for path in self.folder.glob(".*.*"):
            name, _, ending = path.name[1:].rpartition(".")
            if ending in ("partial", "removed"):
                with self.lock(name):  # one that is alive is waited for
                    shutil.rmtree(path, ignore_errors=True)
                names.append(name)
        return names

    def measured(self, key: dict[str, Any]) -> Verification | None:
        """What keep_measured kept under an equal key; None where that cannot be read."""
        try:
            values = json.loads(self._measured_path(key).read_text())
            return Verification(**values["found"]) if values["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is measured anew
            return None

    def keep_measured(self, key: dict[str, Any], found: Verification) -> None:
        """Keep what verifying found; key holds all that it follows from, as plain JSON values."""
        path = self._measured_path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, json.dumps({"key": key, "found": found.as_record()}, indent=1) + "\n")
        except OSError as error:  # a shared store, read-only for us, or another process at the same: measured next time
            log.info("what measuring said cannot be kept in %s: %s", path.parent, error.strerror)

    def _measured_path(self, key: dict[str, Any]) -> Path:
        return self.folder / MEASURED / f"{fingerprint(key)}.json"

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One builder of an engine at a time, over all processes of a machine; a killed one lets go."""
        folder = self.folder / ".locks"
        lock = FileLock(folder / name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                log.info("another process builds %s; waiting for it", name)
                lock.acquire()
        except OSError as error:
            raise UserError(f"--engine-dir {self.folder} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()


def store_at(folder: Path | None) -> Store:
    """The store in a folder, or in the user's cache."""
    return Store(Path(DEFAULT_FOLDER if folder is None else folder).expanduser())


def _record(entry: Entry) -> str:
    values = {
        "format": FORMAT,
        "recipe": entry.key.as_record(),
        "files": {name: dataclasses.asdict(file) for name, file in entry.files.items()},
        "built": entry.built,
        "build_seconds": entry.build_seconds,
        "verified": {device: result.as_record() for device, result in entry.verified.items()},
    }
    return json.dumps(values, indent=1) + "\n"


def _read(folder: Path) -> Entry | BrokenEntry:
    try:
        values = json.loads((folder / RECORD).read_text())
        if values.pop("format") != FORMAT:
            return BrokenEntry(folder, "written by another version of stablerep")
        key = EngineKey.from_record(values["recipe"])
        files = {name: StoredFile(int(f["bytes"]), str(f["sha256"])) for name, f in values["files"].items()}
        if not files or set(files) - set(FILES):
            raise ValueError
        verified = {device: Verification(**result) for device, result in values["verified"].items()}
        entry = Entry(folder, key, files, str(values["built"]), float(values["build_seconds"]), verified)
    except FileNotFoundError:
        return BrokenEntry(folder, f"{RECORD} is missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return BrokenEntry(folder, f"{RECORD} cannot be read")
    if folder.name != key.name:
        return BrokenEntry(folder, f"{RECORD} describes another engine")
    return entry


def _store_file(path: Path) -> StoredFile:
    """Size and digest of a file that is then on the disk for good."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return StoredFile(path.stat().st_size, _sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
