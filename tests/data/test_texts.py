"""Classes and captions, from where they lie to the labels and tokens of a batch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stablerep.config import UserError
from stablerep.data.augment import AugmentConfig
from stablerep.data.index import index_images
from stablerep.data.loader import LoaderConfig, batches
from stablerep.data.sampling import Sampler, open_source
from tests.data.pictures import write_folder, write_shards

LOADER = LoaderConfig(image_size=32, augment=AugmentConfig(), mean=(0, 0, 0), std=(1, 1, 1), seed=0, num_threads=1)


def write_table(folder: Path, rows: Sequence[tuple[str, str, str]], columns: Sequence[str]) -> Path:
    """A table of as many photos as rows, of which each says two things."""
    write_folder(folder, len(rows))
    with (folder / "table.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(("path", *columns))
        table.writerows((f"{number:03}.png", *row) for number, row in enumerate(rows))
    return folder / "table.csv"


def test_a_class_has_one_label_in_folders_and_tables(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_folder(tmp_path / "photos" / name, 3)
    rows = [("dog", "train", ""), ("cow", "train", ""), ("dog", "test", ""), ("", "train", "")]
    table = write_table(tmp_path / "table", rows, ("label", "split", "caption"))
    sources = [open_source(data, "class", 2) for data in (f"{tmp_path / 'photos'}:3", str(table))]
    assert [len(source.count) for source in sources] == [6, 2]  # neither the test photo nor the one without a class
    picks = Sampler(sources, 8, 2, seed=0).picks(0)
    classes = {
        (source, image): sources[source].index.classes[image]  # type: ignore[index]
        for source, image in zip(picks.source.tolist(), picks.image.tolist(), strict=True)
    }
    labels = {key: label for key, label in zip(classes, picks.label[::2].tolist(), strict=True)}
    for one in classes:
        for other in classes:
            assert (labels[one] == labels[other]) == (classes[one] == classes[other])
    assert (picks.image[::2] == picks.image[1::2]).all()  # two views of each


def test_what_has_no_classes_or_captions_is_refused_with_the_mend(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", 4)
    for side in ("train", "test"):
        write_folder(tmp_path / "both" / side / "cat", 2)
    with pytest.raises(UserError, match=r"has no class of any picture; give a folder with CLASS/"):
        open_source(str(photos), "class", 2)
    with pytest.raises(UserError, match=r"both: its folders are test, train; give .*both/train"):
        open_source(str(tmp_path / "both"), "class", 2)
    for group_by in ("caption", "prompt"):
        with pytest.raises(UserError, match=r"has no caption of any picture; give shards, a table"):
            open_source(str(photos), group_by, 1, texts=True)  # type: ignore[arg-type]


def test_an_index_keeps_captions_only_where_they_are_asked_for(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", prompts=3, per_prompt=2)
    assert index_images(shards).texts is None
    texts = index_images(shards, texts=True).texts
    assert texts is not None and texts.to_pylist() == [f"prompt {n}" for n in (0, 0, 1, 1, 2, 2)]
    assert len(texts.dictionary) == 3


@pytest.mark.parametrize("group_by", ["prompt", "caption"])
def test_a_batch_brings_each_of_its_captions_once(tmp_path: Path, group_by: str) -> None:
    seen: list[list[str]] = []

    def tokenize(texts: Sequence[str]) -> Tensor:
        seen.append(list(texts))
        return torch.tensor([[len(text), hash(text) % 1000] for text in texts])

    table = write_table(tmp_path / "t", [("red", "", ""), ("Red.", "", ""), ("", "", "")], ("caption", "a", "b"))
    shards = write_shards(tmp_path / "shards", prompts=6, per_prompt=4)
    views = 2 if group_by == "prompt" else 1
    sources = [open_source(f"{data}:{w}", group_by, views, texts=True) for data, w in ((shards, 2), (table, 1))]  # type: ignore[arg-type]
    assert len(sources[1].count) == (1 if group_by == "prompt" else 2)
    sampler = Sampler(sources, 6, views, seed=0)
    with batches(sampler, replace(LOADER, tokenize=tokenize), torch.device("cpu"), first_step=0, last_step=1) as loader:
        batch = next(loader)
    picks = sampler.picks(0)
    expected = [
        sources[source].text(image) for source, image in zip(picks.source.tolist(), picks.image.tolist(), strict=True)
    ]
    assert len(seen[0]) == len(set(seen[0])) == len(set(expected))
    assert batch.text_of is not None and [seen[0][row] for row in batch.text_of.tolist()] == expected
    reds = {int(label) for label, text in zip(batch.labels, expected, strict=True) if text.lower().startswith("red")}
    assert len(reds) == 1  # "red" and "Red." say the same
