"""Which pictures a step sees."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stablerep.config import UserError
from stablerep.data.sampling import Sampler, open_source, warn_of_same_files
from stablerep.shards import Picture, Sample, start_dataset, write_shard
from tests.data.pictures import encode, random_pixels, write_folder, write_shards


def sampler_of(*data: str, group_by: str = "prompt", groups: int = 4, views: int = 3, seed: int = 0) -> Sampler:
    return Sampler([open_source(d, group_by, views) for d in data], groups, views, seed)  # type: ignore[arg-type]


def test_an_epoch_shows_each_prompt_once_with_different_pictures(tmp_path: Path) -> None:
    sampler = sampler_of(str(write_shards(tmp_path / "shards", prompts=8, per_prompt=5)))
    assert sampler.steps_per_epoch == 2
    index = sampler.sources[0].index
    epochs = []
    for epoch in range(3):
        drawn: dict[int, frozenset[int]] = {}
        for step in (2 * epoch, 2 * epoch + 1):
            picks = sampler.picks(step)
            for row in range(0, 12, 3):
                images = picks.image[row : row + 3]
                assert len(set(images.tolist())) == 3  # without replacement
                assert len(set(index.group[images].tolist())) == 1  # of one prompt
                assert len(set(picks.label[row : row + 3].tolist())) == 1
                drawn[int(picks.label[row])] = frozenset(images.tolist())
        assert sorted(drawn) == list(range(8))
        epochs.append(drawn)
    assert epochs[0] != epochs[1] != epochs[2]  # drawn anew
    assert list(epochs[0]) != list(epochs[1])  # in another order


def test_every_picture_of_a_prompt_is_drawn_as_often(tmp_path: Path) -> None:
    sampler = sampler_of(str(write_shards(tmp_path / "shards", prompts=4, per_prompt=5)))
    count = Counter(image for step in range(400) for image in sampler.picks(step).image.tolist())
    assert set(count) == set(range(20))
    assert all(abs(n - 240) < 50 for n in count.values())  # 400 x 3/5, five deviations of 9.8


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    data = str(write_shards(tmp_path / "shards", prompts=8, per_prompt=5))
    going, fresh = sampler_of(data), sampler_of(data)
    for step in range(5):
        picks = going.picks(step)
    np.testing.assert_array_equal(picks.image, fresh.picks(4).image)
    assert (sampler_of(data, seed=1).picks(4).image != picks.image).any()


def test_a_folder_gives_views_of_the_same_photo(tmp_path: Path) -> None:
    sampler = sampler_of(str(write_folder(tmp_path / "photos", 10)), groups=5)
    picks = sampler.picks(0)
    assert (picks.image.reshape(5, 3) == picks.image[::3, None]).all()
    assert len(set(picks.label.tolist())) == 5


def test_by_image_each_picture_of_shards_is_its_own_group(tmp_path: Path) -> None:
    data = str(write_shards(tmp_path / "shards", prompts=4, per_prompt=3))
    sampler = sampler_of(data, group_by="image", groups=6, views=2)
    seen = [image for step in range(2) for image in sampler.picks(step).image[::2].tolist()]
    assert sorted(seen) == list(range(12))


def test_sources_are_mixed_by_weight_in_every_batch(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", prompts=6, per_prompt=3)
    photos = write_folder(tmp_path / "photos", 10)
    sampler = sampler_of(str(shards), f"{photos}:3", groups=8)
    photo_labels = []
    for step in range(5):
        picks = sampler.picks(step)
        assert (picks.source == 1).sum() == 18
        assert set(picks.label[picks.source == 0].tolist()) <= set(range(6))
        photo_labels += picks.label[picks.source == 1][::3].tolist()
    assert sorted(photo_labels) == sorted(3 * list(range(6, 16)))  # 5 x 6 deals are 3 rounds of 10


def test_a_batch_larger_than_a_source_comes_round(tmp_path: Path) -> None:
    sampler = sampler_of(str(write_folder(tmp_path / "photos", 3)), groups=8, views=2)
    count = Counter(sampler.picks(0).label[::2].tolist())
    assert sorted(count.values()) == [2, 3, 3]


def test_prompts_that_kept_too_few_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rejected = {(1, 0), (1, 1), (2, 0)}
    with caplog.at_level(logging.WARNING):
        sampler = sampler_of(str(write_shards(tmp_path / "shards", 4, 4, rejected)), groups=3, views=3)
    assert sampler.num_groups == 3
    assert "1 of 4 prompts kept fewer than 3 pictures" in caplog.text
    index = sampler.sources[0].index
    for step in range(20):
        assert 101 not in index.group[sampler.picks(step).image]


def test_fewer_pictures_than_views_names_both_flags(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "shards", prompts=2, per_prompt=2)
    with pytest.raises(UserError, match=r"2 pictures a prompt.*--views-per-prompt 6.*--num-images-per-prompt 6"):
        open_source(str(data), "prompt", 6)


@pytest.mark.parametrize(
    ("data", "match"),
    [("none", "does not exist"), ("empty", "no pictures"), ("photos:0", "above 0"), ("photos:x", "does not exist")],
)
def test_data_that_cannot_be_opened(tmp_path: Path, data: str, match: str) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "photos", 1)
    with pytest.raises(UserError, match=match):
        open_source(str(tmp_path / data), "prompt", 2)


def test_a_source_that_gets_no_room_in_the_batch(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", 4)
    with pytest.raises(UserError, match="raise --batch-size or the smallest weight"):
        sampler_of(f"{photos}:1", f"{photos}:100", groups=4)


def write_captions(out: Path, captions: list[str], per_prompt: int = 2) -> str:
    start_dataset(out, {"num_images_per_prompt": per_prompt})
    samples = [
        Sample(
            number, caption, "png", [Picture(k, encode(random_pixels(9 * number + k)), {}) for k in range(per_prompt)]
        )
        for number, caption in enumerate(captions)
    ]
    write_shard(out, 0, samples[: len(samples) // 2])
    write_shard(out, 1, samples[len(samples) // 2 :])
    return str(out)


def test_prompts_of_one_caption_are_one_group_over_rows_shards_and_sources(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = write_captions(tmp_path / "one", ["a red shoe", "a coat", "", "A  red shoe.", "", "a bag"])
    other = write_captions(tmp_path / "other", ["a hat", "a BAG", "a coat", "a red shoe"])
    photos = str(write_folder(tmp_path / "photos", 3))
    with caplog.at_level(logging.INFO):
        sampler = sampler_of(one, other, photos, groups=12, views=2)
    assert "one: 1 prompts have the caption of an earlier one" in caplog.text
    assert [source.count.tolist() for source in sampler.sources] == [[4, 2, 2, 2, 2], [2] * 4, [1] * 3]
    labels = [
        sampler.labels_of(number, np.arange(len(each.count))).tolist() for number, each in enumerate(sampler.sources)
    ]
    # red shoe, coat, nothing, nothing, bag; hat, bag, coat, red shoe; the photos
    assert labels == [[0, 1, 2, 3, 4], [5, 4, 1, 0], [9, 10, 11]]
    for step in range(6):
        picks = sampler.picks(step)
        first = picks.source == 0
        texts = np.array([0, 1, 2, 0, 4, 5])[picks.image[first] // 2]
        assert picks.label[first].tolist() == [{0: 0, 1: 1, 2: 2, 4: 3, 5: 4}[text] for text in texts]


def test_captions_are_nothing_to_simclr(tmp_path: Path) -> None:
    data = write_captions(tmp_path / "one", ["a red shoe", "a red shoe"])
    sampler = sampler_of(data, group_by="image", groups=4, views=2)
    assert sorted(set(sampler.picks(0).label.tolist())) == [0, 1, 2, 3]


def test_photos_with_captions_of_their_own_give_views_and_share_labels(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", 4)
    rows = "".join(f"photos/{n:03}.png,{text}\n" for n, text in enumerate(["a", "b", "A.", "c"]))
    (tmp_path / "table.csv").write_text("path,caption\n" + rows)
    sampler = sampler_of(str(tmp_path / "table.csv"), groups=4, views=3)
    picks = sampler.picks(0)
    assert (picks.image.reshape(4, 3) == picks.image[::3, None]).all()
    by_image = dict(zip(picks.image.tolist(), picks.label.tolist(), strict=True))
    assert by_image[0] == by_image[2] and len(set(by_image.values())) == 3


def test_the_same_files_by_two_names_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = write_folder(tmp_path / "photos", 4)
    (tmp_path / "link").symlink_to(photos)
    write_folder(photos / "below", 3)
    other = write_folder(tmp_path / "other", 2)
    data = [str(photos), str(tmp_path / "link"), str(photos / "below"), str(other)]
    sources = [open_source(each, "prompt", 2) for each in data]
    warn_of_same_files(data, sources)
    said = [message for message in caplog.messages if "count twice" in message]
    assert [message.split(" share ")[1].split(" ")[0] for message in said] == ["7", "3", "3"]
    assert f"--data {photos} and --data {tmp_path / 'link'} share 7 files" in said[0]
