"""The batches of a run: of files, of pictures that are painted for it, or of both side by side in every batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from stablerep.config import fingerprint
from stablerep.data.loader import Batch, LoaderConfig, PictureSources, batches
from stablerep.data.online import OnlineSource
from stablerep.data.sampling import Sampler


@dataclass(frozen=True)
class TrainingData:
    """Files, an online source, or both."""

    files: Sampler | None
    online: OnlineSource | None
    groups_per_step: int  # of both, over all ranks
    pictures: PictureSources | None = None  # of files; None: the sampler's own, any share of which may be damaged

    @property
    def _sources(self) -> list[Sampler | OnlineSource]:
        return [source for source in (self.files, self.online) if source]

    @property
    def steps_per_epoch(self) -> float:
        """An epoch shows as many groups as there are prompts and photos."""
        return sum(source.num_groups for source in self._sources) / self.groups_per_step

    def fingerprint(self) -> str:
        """Changes with the pictures, which would change what a step means."""
        prints = [source.fingerprint() for source in self._sources]
        return prints[0] if len(prints) == 1 else fingerprint(prints)

    @contextmanager
    def batches(
        self, config: LoaderConfig, device: torch.device, *, first_step: int, last_step: int
    ) -> Iterator[Iterator[Batch]]:
        """This rank's batches of steps first_step to last_step - 1."""
        steps: dict[str, int] = {"first_step": first_step, "last_step": last_step}
        if self.files is None:
            assert self.online is not None
            with self.online.batches(config, device, **steps) as painted:
                yield painted
        elif self.online is None:
            with batches(self.files, config, device, self.pictures, **steps) as read:
                yield read
        else:
            with (
                self.online.batches(config, device, **steps) as painted,
                batches(self.files, config, device, self.pictures, **steps) as read,
            ):
                yield _side_by_side(read, painted, self.files.num_groups)

    def drain(self) -> dict[str, float]:
        """Pictures of all ranks that could not be decoded so far, and metrics of painting since the last drain."""
        damaged = {"damaged_pictures": float(self.pictures.damaged.recorded())} if self.pictures else {}
        return damaged | (self.online.drain() if self.online else {})


def _side_by_side(read: Iterator[Batch], painted: Iterator[Batch], labels_read: int) -> Iterator[Batch]:
    for one, other in zip(read, painted, strict=True):
        labels = torch.cat([one.labels, other.labels + labels_read])  # a prompt is no positive of a photo
        yield Batch(torch.cat([one.images, other.images]), labels)
