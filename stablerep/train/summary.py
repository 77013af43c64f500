"""What a run was trained on: data.json when it begins, and a line for each --data when it ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stablerep import atomic
from stablerep.data.bit_range import BitRange
from stablerep.data.damaged import read_record
from stablerep.data.loader import PictureSources
from stablerep.data.picture_files import counted

DATA, DAMAGED = "data.json", "damaged.txt"


def damaged_record(out: Path) -> Path:
    """The file of a run that names the pictures that could not be decoded."""
    return Path(out) / DAMAGED


def write_data(out: Path, names: Sequence[str], pictures: PictureSources) -> None:
    """Note what each --data holds and how it is read; a run that goes on reads it in the same way."""
    rows = [
        {
            "data": name,
            "pictures": len(each.index),
            "groups": len(set(each.index.group.tolist())),
            "shared_captions": each.index.shared_captions,
            "not_read": dict(each.index.not_read),
            "bit_range": [each.bit_range.low, each.bit_range.high] if each.bit_range else None,
        }
        for name, each in zip(names, pictures.encoded, strict=True)
    ]
    atomic.write(Path(out) / DATA, json.dumps(rows, indent=1) + "\n")


def read_bit_ranges(out: Path) -> list[BitRange | None] | None:
    """Of each --data, as the run has measured it; None where no run has begun."""
    rows = _read(out)
    return [BitRange(*row["bit_range"]) if row["bit_range"] else None for row in rows] if rows else None


def bit_range_of(pictures: PictureSources | None) -> tuple[float, float] | None:
    """What an encoder is to show of pictures with more than 8 bits: the range of the first --data that has some."""
    ranges = [each.bit_range for each in pictures.encoded if each.bit_range] if pictures else []
    return (ranges[0].low, ranges[0].high) if ranges else None


def summarise(out: Path) -> list[str]:
    """A line for each --data of a run, and one for pictures that could not be decoded."""
    lines = []
    for row in _read(out):
        notes = [f"{row['pictures']:,} pictures"]
        if row["shared_captions"]:
            notes.append(f"{row['shared_captions']:,} prompts with the caption of an earlier one, counted as it")
        if row["bit_range"]:
            notes.append("values {:g} to {:g} shown as black to white".format(*row["bit_range"]))
        if row["not_read"]:
            notes.append(f"{counted(row['not_read'])} not read")
        lines.append(f"{row['data']}: {'; '.join(notes)}")
    if damaged := read_record(damaged_record(out)):
        were = "picture" if len(damaged) == 1 else "pictures"
        lines.append(f"{len(damaged):,} {were} could not be decoded, others took their places: {damaged_record(out)}")
    return lines


def _read(out: Path) -> list[dict[str, Any]]:
    path = Path(out) / DATA
    return json.loads(path.read_text()) if path.exists() else []
