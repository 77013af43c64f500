"""The shards of a run that are to be painted here, one by one, while other processes paint others of the folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence

from stablerep import shards
from stablerep.generate.claims import POLL_SECONDS, Claims, SoleClaims
from stablerep.generate.shard_writer import ShardWriter
from stablerep.generate.summary import RunProgress
from stablerep.generate.worker import Block

log = logging.getLogger("stablerep.generate")


class ShardQueue:
    """An iterator over the blocks that nobody else paints at the time; true while some are not done, here or elsewhere.

    A block that it gives is claimed until it is written. What others finish counts as progress, and is in the
    writer's `done` then; a block of theirs that they will not finish comes up here, once the iterator is asked again.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        claims: Claims | SoleClaims,
        writer: ShardWriter,
        progress: RunProgress,
        repaint: Collection[int] = (),
    ) -> None:
        self._claims, self._writer, self._progress = claims, writer, progress
        self._left = {block.shard: block for block in blocks}
        self._theirs: set[int] = set()  # that others had claimed when we last looked
        self._repaint = repaint  # done, and damaged
        self._ahead: list[int] = []  # of a round through what is left
        self._spoken = False

    def __bool__(self) -> bool:
        return bool(self._left)

    def __iter__(self) -> ShardQueue:
        return self

    def __next__(self) -> Block:
        self._count_theirs()
        self._ahead = self._ahead or sorted(self._left, reverse=True)
        while self._ahead:
            shard = self._ahead.pop()
            if shard not in self._left or self._is_done(shard):
                continue
            if not self._claims.take(_name(shard)):
                self._theirs.add(shard)
                continue
            if self._is_done(shard):  # between our two looks
                self._claims.release(_name(shard))
                continue
            self._theirs.discard(shard)
            return self._left.pop(shard)
        raise StopIteration

    def write(self, block: Block, samples: list[shards.Sample]) -> None:
        """Write a painted block, unless we stood still for so long that another has taken it over."""
        if not self._claims.holds(_name(block.shard)):
            log.warning("shard %s was taken over by %s", _name(block.shard), self._claims.holder(_name(block.shard)))
            self._progress.completed -= self._progress.images_per_prompt * len(block.prompts)
            self._left[block.shard] = block
            return
        self._writer.write(block.shard, samples, images_per_prompt=self._progress.images_per_prompt)
        self._progress.add_written(samples)
        self._claims.release(_name(block.shard))

    def wait(self) -> None:
        """Wait a moment for the blocks of others."""
        if not self._spoken and self._theirs:
            self._spoken = True
            holders = sorted({self._claims.holder(_name(shard)) for shard in self._theirs})
            count = f"{len(self._theirs)} shards" if len(self._theirs) > 1 else f"shard {_name(min(self._theirs))}"
            log.info("waiting for %s, painted by %s", count, ", ".join(holders))
        time.sleep(POLL_SECONDS)

    def _count_theirs(self) -> None:
        for shard in list(self._theirs):
            self._is_done(shard)

    def _is_done(self, shard: int) -> bool:
        """Whether another process has finished a shard; then it is none of ours any more, and counts as completed."""
        if shard in self._repaint or not self._writer.find(shard):
            return False
        self._theirs.discard(shard)
        block = self._left.pop(shard)
        self._progress.add_painted(len(block.prompts))
        return True


def _name(shard: int) -> str:
    return f"{shard:06}"
