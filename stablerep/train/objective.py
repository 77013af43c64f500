"""What makes two pictures positives of each other. The loss is the same: only the labels differ."""

from __future__ import annotations

from dataclasses import dataclass

from stablerep.data.sampling import GroupBy


@dataclass(frozen=True)
class Objective:
    group_by: GroupBy
    views: int | None  # of a group in a batch; None: as --views-per-prompt says


# With two views of each picture and nothing else alike, the multi-positive loss is SimCLR's NT-Xent.
OBJECTIVES = {"stablerep": Objective("prompt", None), "simclr": Objective("image", 2)}
