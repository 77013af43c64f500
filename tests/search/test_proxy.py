"""What a proxy counts, and of which pictures."""

from __future__ import annotations

from pathlib import Path

from stablerep.search.proxy import class_key, pictures_of
from tests.data.pictures import write_shards


def test_a_class_is_known_however_it_is_written() -> None:
    assert class_key("Ankle_boot") == class_key("ankle  boot") == class_key("ankle-boot")
    assert class_key("boot") != class_key("ankle boot")


def test_pictures_are_spread_over_all_prompts(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", 10, 4)
    pictures = pictures_of(shards, ("a", "b"), most=10)
    assert len(pictures) == 10 and len(set(pictures.index.group[pictures.rows].tolist())) == 10
    assert (pictures.labels == -1).all()  # no labels
    assert len(pictures_of(shards, ("a", "b"), most=1000)) == 40
