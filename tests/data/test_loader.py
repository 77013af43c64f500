"""From encoded pictures on disk to batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stablerep.config import UserError
from stablerep.data import encoded
from stablerep.data.augment import AugmentConfig
from stablerep.data.loader import LoaderConfig, batches, open_pictures
from stablerep.data.sampling import Sampler, open_source
from tests.data.pictures import encode, random_pixels, write_folder, write_shards

STRONG = LoaderConfig(
    image_size=32, augment=AugmentConfig(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), seed=0, num_threads=1
)
NO_CHANGE = AugmentConfig(min_scale=1.0, jitter=0, grey=0, blur=0, flip=0)


def sampler_of(data: Path, groups: int = 4, views: int = 2) -> Sampler:
    return Sampler([open_source(str(data), "prompt", views)], groups, views, seed=0)


def load(sampler: Sampler, config: LoaderConfig, first: int, last: int) -> list[tuple[Tensor, Tensor]]:
    with batches(sampler, config, torch.device("cpu"), first_step=first, last_step=last) as loader:
        return [(batch.images, batch.labels) for batch in loader]


def pixels_of(images: Tensor, config: LoaderConfig) -> Tensor:  # [B, 3, S, S] -> [B, S, S, 3], 0..255
    return (images.permute(0, 2, 3, 1) * torch.tensor(config.std) + torch.tensor(config.mean)) * 255


def test_unaugmented_pictures_come_through_as_they_are(tmp_path: Path) -> None:
    sampler = sampler_of(write_shards(tmp_path / "shards", prompts=4, per_prompt=3))
    config = replace(STRONG, augment=NO_CHANGE)
    ((images, labels),) = load(sampler, config, 0, 1)
    assert images.is_contiguous(memory_format=torch.channels_last)
    picks = sampler.picks(0)
    group = sampler.sources[0].index.group
    for row, image in enumerate(picks.image):
        within = int(image - np.flatnonzero(group == group[image])[0])
        expected = random_pixels(1000 * (int(group[image]) - 100) + within)
        torch.testing.assert_close(pixels_of(images, config)[row], torch.tensor(expected).float(), atol=0.01, rtol=0)
    assert labels.tolist() == picks.label.tolist()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_other_formats_sizes_and_colours_are_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "long.jpg").write_bytes(encode(random_pixels(1, 20, 90), kind))
    (tmp_path / "a" / "grey.jpg").write_bytes(encode(random_pixels(2)[..., 0], kind))
    ((images, _),) = load(sampler_of(tmp_path / "a"), STRONG, 0, 1)
    assert images.shape == (8, 3, 32, 32) and images.isfinite().all()


def test_a_crop_is_a_part_of_the_picture_stretched(tmp_path: Path) -> None:
    """In a picture whose colour is its place, a crop shows where it was cut: area and aspect ratio must fit."""
    (tmp_path / "a").mkdir()
    y, x = np.meshgrid(np.arange(96), np.arange(144), indexing="ij")
    place = np.stack([x, 2 * y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    (tmp_path / "a" / "0.png").write_bytes(encode(place))
    augment = AugmentConfig(min_scale=0.1, jitter=0, grey=0, blur=0)
    config = replace(STRONG, augment=augment)
    results = load(sampler_of(tmp_path / "a", groups=16), config, 0, 8)
    pixels = torch.cat([pixels_of(images, config) for images, _ in results])
    # The middle half of the rows and columns is free of what the edges do to interpolation.
    width = (pixels[:, 16, 24, 0] - pixels[:, 16, 8, 0]).abs() * 2
    height = (pixels[:, 24, 16, 1] - pixels[:, 8, 16, 1]).abs()
    area, aspect = width * height / (96 * 144), width / height
    # 0.40 in the mean, not 0.55: of large crops few ratios fit a picture of 3 : 2; torchvision then draws both anew.
    assert area.min() > 0.09 and area.max() < 1.05 and 0.35 < area.mean() < 0.5
    ordinary = area < 0.6
    assert 0.7 < aspect[ordinary].min() < 0.85 and 1.15 < aspect[ordinary].max() < 1.43
    mirrored = pixels[:, 16, 24, 0] < pixels[:, 16, 8, 0]
    assert 0.4 < mirrored.float().mean() < 0.6


def test_grey_takes_all_colour_away(tmp_path: Path) -> None:
    config = replace(STRONG, augment=replace(NO_CHANGE, grey=1.0))
    ((images, _),) = load(sampler_of(write_folder(tmp_path / "a", 4)), config, 0, 1)
    pixels = pixels_of(images, config)
    assert (pixels.amax(-1) - pixels.amin(-1)).max() <= 2
    assert pixels.std() > 10


def test_blur_smooths(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    (tmp_path / "a" / "0.png").write_bytes(encode(noise))
    sharp, soft = (
        load(sampler_of(tmp_path / "a"), replace(STRONG, image_size=224, augment=replace(NO_CHANGE, blur=p)), 0, 1)[0][
            0
        ]
        for p in (0.0, 1.0)
    )
    assert (soft.std(dim=(1, 2, 3)) < 0.95 * sharp.std(dim=(1, 2, 3))).float().mean() > 0.8


def test_a_batch_depends_on_its_step_alone(tmp_path: Path) -> None:
    sampler = sampler_of(write_shards(tmp_path / "shards", prompts=8, per_prompt=3))
    whole = load(sampler, STRONG, 0, 6)
    resumed = load(sampler_of(tmp_path / "shards"), replace(STRONG, num_threads=2), 4, 6)
    assert len(whole) == 6 and len(resumed) == 2
    for (images, labels), (again, labels_again) in zip(whole[4:], resumed, strict=True):
        assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert not torch.equal(whole[0][0], whole[1][0])


def test_a_batch_of_large_photos_is_made_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_folder(tmp_path / "photos", 9)
    spoil(photos / "004.png")
    whole = load(sampler_of(photos), STRONG, 0, 4)
    monkeypatch.setattr(encoded, "CHUNK_BYTES", 3 * 3 * 32 * 32)
    for (images, labels), (expected, expected_labels) in zip(
        load(sampler_of(photos), STRONG, 0, 4), whole, strict=True
    ):
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)
        assert images.is_contiguous(memory_format=torch.channels_last)


def load_two(folder: Path) -> tuple[np.ndarray, list[int]]:
    images, labels = load(sampler_of(folder), STRONG, 1, 2)[0]
    return images.numpy(), labels.tolist()


def test_ranks_share_the_batch_that_one_process_sees(tmp_path: Path, run_ranks: Callable[..., list[Any]]) -> None:
    data = write_folder(tmp_path / "photos", 9)
    images_of_one, labels = load_two(data)
    ranks = run_ranks(2, load_two, data)
    np.testing.assert_array_equal(np.concatenate([images for images, _ in ranks]), images_of_one)
    assert ranks[0][1] + ranks[1][1] == labels


def test_leaving_early_stops_the_thread(tmp_path: Path) -> None:
    sampler = sampler_of(write_folder(tmp_path / "photos", 4))
    with batches(sampler, STRONG, torch.device("cpu"), first_step=0, last_step=1000) as loader:
        assert len(list(islice(loader, 2))) == 2


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def load_recorded(folder: Path, record: Path, most: float = 1.0, first: int = 0, last: int = 4) -> list[np.ndarray]:
    sampler = sampler_of(folder)
    pictures = open_pictures(sampler, record=record, most_damaged=most)
    with batches(sampler, STRONG, torch.device("cpu"), pictures, first_step=first, last_step=last) as loader:
        return [batch.images.numpy() for batch in loader]


def test_another_photo_takes_the_place_of_a_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, run_ranks: Callable[..., list[Any]]
) -> None:
    photos = write_folder(tmp_path / "photos", 12)
    whole = load_recorded(photos, tmp_path / "none")
    spoil(photos / "005.png")
    (photos / "007.png").write_bytes(b"a letter")
    (photos / "008.png").unlink()
    (photos / "008.png").write_bytes(b"")
    found = load_recorded(photos, tmp_path / "damaged.txt")
    names = [str(photos / name) for name in ("005.png", "007.png", "008.png")]
    assert sorted((tmp_path / "damaged.txt").read_text().splitlines()) == names
    for name in names:
        assert sum(name in message for message in caplog.messages) == 1  # named once

    sampler = sampler_of(photos)
    bad = {5, 7, 8}
    for step, (before, after) in enumerate(zip(whole, found, strict=True)):
        image = sampler.picks(step).image
        for row in range(len(image)):
            assert np.array_equal(before[row], after[row]) == (image[row] not in bad)
    # What stands in follows from the seed and the step: a resumed run, that knows of the damage, and ranks see it too.
    resumed = load_recorded(photos, tmp_path / "damaged.txt", first=2)
    assert all(np.array_equal(one, other) for one, other in zip(found[2:], resumed, strict=True))
    ranks = run_ranks(2, load_recorded, photos, tmp_path / "of_ranks.txt")
    for step, expected in enumerate(found):
        np.testing.assert_array_equal(np.concatenate([images[step] for images in ranks]), expected)
    assert sorted(set((tmp_path / "of_ranks.txt").read_text().splitlines())) == names


def test_a_damaged_picture_of_a_prompt_is_replaced_by_another_of_it(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", prompts=4, per_prompt=3)
    sampler = sampler_of(shards)
    index = sampler.sources[0].index
    with index.files[index.file[5]].open("r+b") as file:  # the last of the second prompt
        file.seek(int(index.offset[5]))
        file.write(bytes(int(index.size[5])))
    config = replace(STRONG, augment=NO_CHANGE)
    seen = 0
    for step, (images, _) in enumerate(load(sampler_of(shards), config, 0, 6)):
        image = sampler.picks(step).image
        pixels = pixels_of(images, config)
        (rows,) = np.nonzero(image // 3 == 1)
        for row in rows:
            other = image[rows[0] + rows[1] - row]
            expected = image[row] if image[row] != 5 else ({3, 4} - {int(other)}).pop()
            seen += image[row] == 5
            wanted = torch.tensor(random_pixels(1000 + int(expected) - 3)).float()
            torch.testing.assert_close(pixels[row], wanted, atol=0.01, rtol=0)
    assert seen > 1


@pytest.mark.parametrize("groups", [1, 4])
def test_a_photo_without_a_whole_view_shows_another_photo_as_itself(tmp_path: Path, groups: int) -> None:
    photos = write_folder(tmp_path / "photos", 5)
    for number in range(4):
        spoil(photos / f"{number:03}.png")
    config = replace(STRONG, augment=NO_CHANGE)
    for images, labels in load(sampler_of(photos, groups=groups), config, 0, 3):
        wanted = torch.tensor(random_pixels(4)).float()
        torch.testing.assert_close(pixels_of(images, config), wanted.expand(len(images), -1, -1, -1), atol=0.01, rtol=0)
        assert labels.tolist() == [4] * len(images)  # whoever it stands in for: never a negative of itself


def test_too_many_damaged_pictures_stop_the_run(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", 10)
    for number in (2, 3, 4):
        spoil(photos / f"{number:03}.png")
    with pytest.raises(UserError, match=r"--max-damaged 0.2: 3 of 10 pictures are damaged, .*002.*003.*004") as error:
        load_recorded(photos, tmp_path / "damaged.txt", most=0.2)
    assert "\n" not in str(error.value) and "damaged.txt" in str(error.value)
    for path in photos.iterdir():
        spoil(path)
    with pytest.raises(UserError, match=r"no picture can be decoded, .*000\.png and all others"):
        load_recorded(photos, tmp_path / "other.txt")
