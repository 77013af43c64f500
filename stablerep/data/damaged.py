"""Pictures that cannot be decoded: what stands in for them, and who is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stablerep.config import UserError
from stablerep.data.sampling import STAND_INS, Picks, Sampler, random_stream

NAMED = 10  # in the line that stops a run

log = logging.getLogger("stablerep.data")


class DamagedPictures:
    """Those of a run that are known, by what ImageIndex.where says of them; on several ranks those of each.

    A picture's damage is a fact of its file and what stands in for it follows from the seed and the step, so a resumed
    run trains on the same pictures; that it knows the damage beforehand only saves it finding out.
    """

    def __init__(self, record: Path | None, total: int, most_share: float) -> None:
        """record: a file with a line a picture, to which new ones are added."""
        self._record, self._total, self._most_share = record, total, most_share
        self._known = read_record(record) if record else set()

    def __contains__(self, where: str) -> bool:
        return where in self._known

    def __len__(self) -> int:
        return len(self._known)

    def recorded(self) -> int:
        """How many all ranks know, those of an earlier part of the run too."""
        return len(read_record(self._record)) if self._record else len(self._known)

    def add(self, where: str) -> None:
        """Note and name a damaged picture.

        Raises:
            UserError: more than the share that a run may lose.
        """
        if where in self._known:
            return
        self._known.add(where)
        log.warning("%s cannot be decoded; another picture takes its place", where)
        if self._record:
            with self._record.open("a") as file:  # one short line: ranks that add at once do not mix
                file.write(where + "\n")
        if len(self._known) > self._most_share * self._total:
            first = "; ".join(sorted(self._known)[:NAMED]) + (" ..." if len(self._known) > NAMED else "")
            raise UserError(
                f"--max-damaged {self._most_share:.3g}: {len(self._known)} of {self._total} pictures are damaged, "
                f"{first}{f' (all in {self._record})' if self._record else ''}; mend or remove them, or raise it"
            )


def read_record(path: Path) -> set[str]:
    """The pictures that a record names; none where there is no such file."""
    return set(path.read_text().splitlines()) if path.exists() else set()


def stand_ins(sampler: Sampler, picks: Picks, row: int, step: int) -> Iterator[tuple[int, int]]:
    """Pictures of the same --data, each with its group, the first good one of which takes the place of a row's picture.

    First those of its group that the batch does not show, then those that it does. Then pictures of other groups, those
    that the batch does not have before the others, in an order drawn by the group and the step: all rows of a group
    take the same one.
    """
    source, own = sampler.sources[picks.source[row]], int(picks.group[row])
    same_source = picks.source == picks.source[row]
    rows = np.flatnonzero(same_source & (picks.group == own))
    shown = picks.image[rows]
    members = source.pictures_of(own)
    around = np.roll(members, -int(np.flatnonzero(members == picks.image[row])[0]))[1:]
    yield from ((int(image), own) for image in around if image not in shown)
    yield from ((int(image), own) for image in around if image in shown)

    drawn = random_stream(sampler.seed, STAND_INS, step, own).permutation(len(source.count))
    in_batch = np.isin(drawn, picks.group[same_source])
    place = int(np.flatnonzero(rows == row)[0])
    for group in (*drawn[~in_batch].tolist(), *drawn[in_batch & (drawn != own)].tolist()):
        members = source.pictures_of(group)
        yield int(members[place % len(members)]), group
