"""Batches of pictures that are painted meanwhile: which, when, and again after a stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stablerep.config import UserError
from stablerep.data.augment import AugmentConfig
from stablerep.data.loader import Batch, LoaderConfig
from stablerep.data.mixing import TrainingData
from stablerep.data.online import OnlineGenerator, OnlineSource, Plan
from stablerep.data.pool import choose
from stablerep.data.sampling import Sampler, open_source
from tests.data.pictures import random_pixels, write_folder

CPU = torch.device("cpu")
CONFIG = LoaderConfig(image_size=8, augment=AugmentConfig(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), seed=0)


def generator(prompts: int, k: int = 3, at_once: int = 2, bad: Sequence[int] = (), log: Any = None) -> OnlineGenerator:
    """Paints smooth random pictures, other ones for each (prompt id, round, number); ids are 10, 11, ..."""

    def paint(prompt_ids: Sequence[int], rounds: Sequence[int]) -> tuple[Tensor, Tensor]:
        if log is not None:
            log.extend(zip(prompt_ids, rounds, strict=True))
        pixels = [
            [random_pixels(hash((number, round_, i)) % 2**32, 8, 8) for i in range(k)]
            for number, round_ in zip(prompt_ids, rounds, strict=True)
        ]
        good = torch.tensor([[number not in bad] * k for number in prompt_ids])
        return torch.from_numpy(np.array(pixels)), good

    return OnlineGenerator(range(10, 10 + prompts), k, at_once, {"model": "smooth"}, paint)


def load(source: OnlineSource | TrainingData, first: int, last: int) -> list[Batch]:
    with source.batches(CONFIG, CPU, first_step=first, last_step=last) as loader:
        return list(loader)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(1, 8), st.integers(1, 9), st.data())
def test_every_prompt_is_shown_as_often_before_it_leaves(
    prompts: int, slots: int, block: int, per_step: int, uses: int, data: st.DataObject
) -> None:
    block, per_step = min(block, slots), min(per_step, slots)
    plan = Plan(list(range(prompts)), slots, block, per_step, uses, seed=1, rank=0)
    shown: Counter[int] = Counter()
    steps = 3 * slots * uses // per_step + 10
    for step in range(steps):
        last = plan.blocks_due(step) * block
        slot, _ = choose(1, step, slots, 1, per_step, 1, 0)
        held = {number % slots: number for number in range(last - slots, last)}  # what a ring holds
        assert min(held.values()) >= 0
        shown.update(held[s] for s in slot.tolist())
        # What a stopped run would paint again is all that is held, and no block more.
        first = plan.first_block(step) * block
        assert first <= min(held.values()) < first + block
    gone = (plan.blocks_due(steps - 1) - 1) * block - slots
    early = -(-slots // block) * block  # those of the first fill may have begun before a round or left early
    for number in range(early, gone):
        # It enters up to a block early or late, and may miss the end of a round: a block's worth of steps and a round.
        assert abs(shown[number] - uses) <= 2 + block * uses / slots
    # Every prompt comes once in each round.
    numbers = [plan.members(b) for b in range(-(-2 * prompts // block))]
    members = [pair for ids, rounds in numbers for pair in zip(ids, rounds, strict=True)]
    assert sorted(members[: 2 * prompts]) == sorted((i, r) for i in range(prompts) for r in (0, 1))


def test_a_batch_depends_on_its_step_alone() -> None:
    def source() -> OnlineSource:
        return OnlineSource(generator(7, at_once=2), 3, views=2, seed=0, pool_prompts=5, uses=2)

    whole = load(source(), 0, 20)
    assert all(batch.images.shape == (6, 3, 8, 8) for batch in whole)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in whole)
    for first in (1, 7, 13, 19):
        for batch, again in zip(whole[first:], load(source(), first, 20), strict=True):
            assert torch.equal(batch.images, again.images) and torch.equal(batch.labels, again.labels)


def test_nothing_is_painted_twice_nor_before_it_is_due() -> None:
    log: list[tuple[int, int]] = []
    source = OnlineSource(generator(6, at_once=2, log=log), 4, views=2, seed=0, pool_prompts=4, uses=4)
    load(source, 0, 9)  # 4 fill the pool, then one a step in blocks of 2: at steps 2, 4, 6 and 8
    assert len(log) == len(set(log)) == 12
    assert sorted(log) == [(10 + i, r) for i in range(6) for r in (0, 1)]
    drained = source.drain()
    assert drained["painted"] == 8 * 3 and drained["rejected"] == 0 and 0 < drained["paint_share"] <= 1


def test_prompts_that_fail_do_not_enter_and_all_failing_stops_the_run() -> None:
    source = OnlineSource(generator(6, bad=(11, 14)), 3, views=2, seed=0, pool_prompts=6, uses=2)
    labels = {label for batch in load(source, 0, 20) for label in batch.labels.tolist()}
    assert labels == {10, 12, 13, 15}
    assert source.drain()["rejected"] > 0
    hopeless = OnlineSource(generator(3, bad=(10, 11, 12)), 2, views=2, seed=0, pool_prompts=3, uses=2)
    with pytest.raises(UserError, match="none of the 3 prompts painted last"):
        load(hopeless, 0, 1)


def test_prompts_of_one_caption_have_one_label() -> None:
    painting = replace(generator(6), labels={12: 10, 15: 11})
    source = OnlineSource(painting, 6, 2, seed=0, pool_prompts=6, uses=4)
    first, *others = load(source, 0, 4)
    assert sorted(first.labels.tolist()) == [10] * 4 + [11] * 4 + [13, 13, 14, 14]
    assert all(not {12, 15} & set(batch.labels.tolist()) for batch in others)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(UserError, match=r"--pool-uses 1 would paint 4 new prompts a step for a pool of 3"):
        OnlineSource(generator(5), 4, views=2, seed=0, pool_prompts=3, uses=1)
    with pytest.raises(UserError, match=r"3 pictures a prompt, fewer than --views-per-prompt 4; lower"):
        OnlineSource(generator(5), 2, views=4, seed=0, pool_prompts=0, uses=2)


def test_a_pool_larger_than_the_memory_is_refused() -> None:
    source = OnlineSource(generator(5), 2, views=2, seed=0, pool_prompts=10**12, uses=2)
    with pytest.raises(UserError, match=r"--pool-prompts: 1000000000000 prompts of 3 pictures are 576000\.0 GB"):
        load(source, 0, 1)


def test_files_and_painted_pictures_lie_side_by_side(tmp_path: Path) -> None:
    def data() -> TrainingData:
        files = Sampler([open_source(str(write_or_find(tmp_path / "photos")), "prompt", 2)], 2, 2, seed=0)
        return TrainingData(files, OnlineSource(generator(6), 4, 2, seed=0, pool_prompts=0, uses=2), 6)

    whole = load(data(), 0, 6)
    for batch in whole:
        labels = batch.labels.tolist()
        assert set(labels[:4]) <= set(range(5)) and set(labels[4:]) <= set(range(15, 21))  # 5 photos come first
        assert labels[::2] == labels[1::2]
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert data().steps_per_epoch == 11 / 6
    assert all(
        torch.equal(batch.images, again.images) for batch, again in zip(whole[4:], load(data(), 4, 6), strict=True)
    )


def write_or_find(folder: Path) -> Path:
    return folder if folder.exists() else write_folder(folder, 5)


def labels_and_painted() -> tuple[list[int], list[tuple[int, int]]]:
    log: list[tuple[int, int]] = []
    source = OnlineSource(generator(7, log=log), 4, views=2, seed=0, pool_prompts=6, uses=2)
    return [label for batch in load(source, 0, 9) for label in batch.labels.tolist()], log


def test_ranks_paint_and_show_prompts_of_their_own(run_ranks: Callable[..., list[Any]]) -> None:
    results = run_ranks(2, labels_and_painted)
    for rank, (labels, painted) in enumerate(results):
        own = set(range(10 + rank, 17, 2))
        assert set(labels) == own and {number for number, _ in painted} == own
        assert len(labels) == 9 * 2 * 2
    assert not set(results[0][1]) & set(results[1][1])
