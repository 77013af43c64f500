"""Features on disk by what they are of: weights, transform, photos. Each rank computes a share."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

from stablerep import atomic, distributed
from stablerep.config import UserError
from stablerep.data.labelled import Photos
from stablerep.evaluate.features import Features, features_of, raise_strict
from stablerep.models import InputTransform

MOST_BYTES = 20 * 10**9  # the folder as a whole; what was used longest ago goes first
HALF_ABOVE = 2**30  # bytes of float32; larger sets are kept as float16, whose error of 2^-11 no probe sees
VALUES, ABOUT = "features.npy", "about.json"
VERSION = 1  # of how features are computed
GATHERED = 4096  # rows sent at once
LIKELY_WIDTH = 2048  # of features that are yet to be computed, where room is made for them


@dataclass(frozen=True)
class FeatureCache:
    """A folder of features; processes and runs share it."""

    folder: Path

    def get(
        self, encoder: nn.Module, transform: InputTransform, photos: Photos, *, device: torch.device, **options: Any
    ) -> Features | None:
        """The features of photos, read or computed; the values lie in a file and are read as they are used.

        Under torchrun every rank calls this and computes its share; None on all ranks but the first, which has all.
        options: as features_of takes them.
        """
        entry = self.folder / _key(encoder, transform, photos, device)
        if distributed.rank() > 0:
            return self._get(entry, encoder, transform, photos, device, options)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{entry.name}.lock"):  # another process with the same question waits for this
            return self._get(entry, encoder, transform, photos, device, options)

    def _get(
        self,
        entry: Path,
        encoder: nn.Module,
        transform: InputTransform,
        photos: Photos,
        device: torch.device,
        options: dict[str, Any],
    ) -> Features | None:
        kept = _is_there(entry) if distributed.rank() == 0 else False
        if not distributed.all_true(kept or distributed.rank() > 0, device):
            mine = np.array_split(np.arange(len(photos)), distributed.world_size())[distributed.rank()]
            if distributed.rank() == 0:
                self._make_room(_bytes_of(len(photos), LIKELY_WIDTH))
                with atomic.new_folder(entry) as new:
                    self._compute(new, encoder, transform, photos, mine, device, options)
            else:
                self._compute(None, encoder, transform, photos, mine, device, options)
        if distributed.rank() > 0:
            return None
        found = _open(entry, photos, device, kept)
        if len(found.left_out) and options.get("strict"):
            raise_strict(photos, int(found.left_out[0]))
        return found

    def _make_room(self, wanted: int) -> None:
        """Drop what was used longest ago, until `wanted` bytes more are at most MOST_BYTES."""
        entries = [entry for entry in self.folder.iterdir() if (entry / ABOUT).is_file()]
        entries.sort(key=lambda entry: (entry / ABOUT).stat().st_mtime_ns)
        held = sum((entry / VALUES).stat().st_size for entry in entries)
        for entry in entries:
            if held + wanted <= MOST_BYTES:
                return
            held -= (entry / VALUES).stat().st_size
            shutil.rmtree(entry)

    def _compute(
        self,
        new: Path | None,
        encoder: nn.Module,
        transform: InputTransform,
        photos: Photos,
        mine: NDArray[np.int64],
        device: torch.device,
        options: dict[str, Any],
    ) -> None:
        """The share of this rank, gathered into a file on the first."""
        alone = distributed.world_size() == 1

        def into_file(rows: int, width: int) -> Tensor:
            assert new is not None
            return torch.from_numpy(_new_values(new, len(photos), width))

        show = distributed.rank() == 0
        seen = features_of(
            encoder, transform, photos.take(mine), device=device, show=show,
            allocate=into_file if alone else None, **options,
        )  # fmt: skip
        if alone:
            assert new is not None
            _describe(new, len(seen.x), seen.left_out)
            return
        left_out: list[Any] = [None] * distributed.world_size()
        dist.all_gather_object(left_out, mine[seen.left_out])
        values = None
        done = 0
        for block, count in _gathered(seen.x):  # on the first rank, of each rank in turn
            if new is None:
                continue
            if values is None:
                values = _new_values(new, len(photos), block.shape[1])
            values[done : done + count] = block[:count].cpu().numpy()
            done += count
        if new is not None:
            _describe(new, done, np.concatenate(left_out))


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stablerep" / "features"


def _gathered(x: Tensor) -> Iterator[tuple[Tensor, int]]:  # [B, D], B
    """The rows of each rank in the order of ranks, some at a time; every rank must go through all."""
    counts = torch.zeros(distributed.world_size(), dtype=torch.int64, device=x.device)
    counts[distributed.rank()] = len(x)
    dist.all_reduce(counts)
    for rank, count in enumerate(counts.tolist()):
        for start in range(0, count, GATHERED):
            size = min(GATHERED, count - start)
            own = rank == distributed.rank()
            block = x[start : start + size].contiguous() if own else x.new_empty(size, x.shape[1])
            dist.broadcast(block, rank)
            yield block, size


def _new_values(new: Path, rows: int, width: int) -> NDArray[Any]:
    half = 4 * rows * width > HALF_ABOVE
    return np.lib.format.open_memmap(new / VALUES, "w+", np.float16 if half else np.float32, (rows, width))


def _bytes_of(rows: int, width: int) -> int:
    return min(4 * rows * width, max(HALF_ABOVE, 2 * rows * width))


def _describe(new: Path, count: int, left_out: NDArray[np.int64]) -> None:
    (new / ABOUT).write_text(json.dumps({"count": count, "left_out": [int(row) for row in left_out]}) + "\n")


def _is_there(entry: Path) -> bool:
    return (entry / ABOUT).is_file() and (entry / VALUES).is_file()


def _open(entry: Path, photos: Photos, device: torch.device, kept: bool) -> Features:
    try:
        about = json.loads((entry / ABOUT).read_text())
        values = np.load(entry / VALUES, mmap_mode="c")  # writable for torch, on a page of its own
    except (OSError, ValueError) as error:
        raise UserError(f"the features in {entry} cannot be read; remove that folder") from error
    os.utime(entry / ABOUT)  # used last: dropped last
    left_out = np.array(about["left_out"], np.int64)
    rows = np.setdiff1d(np.arange(len(photos)), left_out)
    x = torch.from_numpy(values[: about["count"]])
    labels = torch.from_numpy(photos.labels[rows]).to(device)
    return Features(x.to(device), labels, left_out, from_cache=kept)


def _key(encoder: nn.Module, transform: InputTransform, photos: Photos, device: torch.device) -> str:
    """Digest of all that features depend on, but for rounding: batch size and threads change the last bits."""
    digest = hashlib.sha256(f"{VERSION} {device.type} {encoder!r}".encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(repr((transform, getattr(photos, "bit_range", None))).encode())
    digest.update(photos.digest().encode())
    return digest.hexdigest()[:32]
