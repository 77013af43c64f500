"""What a pool holds after any puts, and what a step draws from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stablerep.data.pool import EMPTY, ImagePool
from tests.waits import Waits

CPU = torch.device("cpu")


def pictures(prompt_ids: Sequence[int], k: int, first: int) -> Tensor:  # [n, K, 1, 1, 3] uint8
    """Their one pixel tells whose they are: the prompt, the picture, and the how manieth prompt in the pool."""
    pixels = [[[[[prompt_id, i, first + row]]] for i in range(k)] for row, prompt_id in enumerate(prompt_ids)]
    return torch.tensor(pixels, dtype=torch.uint8)


def filled(slots: int, k: int) -> ImagePool:
    pool = ImagePool.empty(slots, k, 1, 1, CPU)
    pool.put(range(slots), pictures(range(slots), k, 0), torch.ones(slots, k, dtype=torch.bool))
    return pool


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[list[tuple[int, list[bool]]]]]:
    """Slots, K, and puts of some (prompt id, which pictures are good) each."""
    slots, k = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    prompt = st.tuples(st.integers(0, 20), st.lists(st.booleans(), min_size=k, max_size=k))
    return slots, k, draw(st.lists(st.lists(prompt, min_size=1, max_size=slots), min_size=1, max_size=8))


@settings(deadline=None, max_examples=100)
@given(histories(), st.integers(0, 1000), st.data())
def test_a_batch_shows_good_pictures_of_the_prompts_put_last(
    history: tuple[int, int, list[list[tuple[int, list[bool]]]]], step: int, data: st.DataObject
) -> None:
    """The oracle is a plain list of what is in each slot."""
    slots, k, puts = history
    pool = ImagePool.empty(slots, k, 1, 1, CPU)
    ring: list[tuple[int, int, list[int]] | None] = [None] * slots  # prompt id, its number, the good pictures
    number = 0
    for put in puts:
        ids = [prompt_id for prompt_id, _ in put]
        pool.put(ids, pictures(ids, k, number), torch.tensor([good for _, good in put]))
        for prompt_id, good in put:
            which = [i for i, each in enumerate(good) if each]
            ring[number % slots] = (prompt_id, number, which) if which else None
            number += 1
    assert int(pool.rejected) == sum(not each for put in puts for _, good in put for each in good)
    assert pool.prompt_ids.tolist() == [EMPTY if slot is None else slot[0] for slot in ring]
    if not any(ring):
        return
    views = data.draw(st.integers(1, k))
    drawn = pool.draw(seed=3, step=step, prompts=slots, views=views)
    shown: Counter[int] = Counter()
    for row, label in enumerate(drawn.labels.tolist()):
        prompt_id, place, number = drawn.pictures[row].flatten().tolist()
        held = ring[number % slots]
        assert held is not None and held[:2] == (prompt_id, number) == (label, number)
        assert place in held[2]
        shown[number % slots] += 1
    # A batch of all slots shows each filled one; an empty one lets the next filled one come in its stead.
    turns = [next((slot + i) % slots for i in range(slots) if ring[(slot + i) % slots]) for slot in range(slots)]
    assert shown == {slot: views * count for slot, count in Counter(turns).items()}


def test_a_prompt_with_enough_good_pictures_shows_different_ones() -> None:
    pool = ImagePool.empty(1, 5, 1, 1, CPU)
    pool.put([7], pictures([7], 5, 0), torch.tensor([[False, True, True, False, True]]))
    for step in range(20):
        places = pool.draw(0, step, prompts=1, views=3).pictures[:, 0, 0, 1].tolist()
        assert set(places) <= {1, 2, 4} and len(set(places)) >= 2  # five places hold three: one or two come twice
    assert sorted(pool.pictures[0, :3, 0, 0, 1].tolist()) == [1, 2, 4]


def test_each_slot_is_drawn_once_a_round_and_every_picture_as_often() -> None:
    pool = filled(slots=6, k=4)
    count: Counter[tuple[int, int]] = Counter()
    rounds = []
    for begin in range(0, 600, 3):
        of_round = [pool.draw(5, step, prompts=2, views=2) for step in range(begin, begin + 3)]
        assert sorted(label for drawn in of_round for label in drawn.labels.tolist()[::2]) == list(range(6))
        rounds.append([drawn.labels.tolist() for drawn in of_round])
        for drawn in of_round:
            rows = [tuple(pixel[:2]) for pixel in drawn.pictures[:, 0, 0].tolist()]
            assert len(set(rows)) == 4  # without replacement
            count.update(rows)
    assert rounds[0] != rounds[1] != rounds[2]
    assert len(count) == 24 and all(abs(times - 100) < 35 for times in count.values())  # five deviations of 7


def test_a_batch_depends_on_seed_step_rank_and_what_was_put() -> None:
    def labels(**changes: int) -> list[int]:
        arguments = {"seed": 1, "step": 4, "prompts": 3, "views": 2, "rank": 0} | changes
        return filled(slots=40, k=3).draw(**arguments).labels.tolist()

    assert labels() == labels()
    assert len({tuple(labels(**{name: 9})) for name in ("seed", "step", "rank")} | {tuple(labels())}) == 4


def test_keys_tell_rows_and_ranks_apart() -> None:
    drawn = [filled(slots=4, k=3).draw(0, 17, prompts=4, views=3, rank=rank).keys for rank in (0, 1)]
    assert len({tuple(key) for keys in drawn for key in keys.tolist()}) == 24
    assert all((keys[:, 0] == 17).all() for keys in drawn)
    assert np.concatenate([keys[:, 2] for keys in drawn]).tolist() == list(range(24))


@pytest.mark.parametrize(
    ("ids", "shape", "good"),
    [([0, 1, 2], (3, 2, 1, 1, 3), (3, 2)), ([0], (1, 3, 1, 1, 3), (1, 3)), ([0], (2, 2, 1, 1, 3), (1, 2)),
     ([0], (1, 2, 1, 1, 3), (2,))],
)  # fmt: skip
def test_what_does_not_fit_is_refused(ids: list[int], shape: tuple[int, ...], good: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ImagePool\.put: up to 2 prompts"):
        filled(2, 2).put(ids, torch.zeros(shape, dtype=torch.uint8), torch.ones(good, dtype=torch.bool))


def test_put_and_draw_ask_the_device_nothing() -> None:
    pool, good = filled(slots=4, k=3), torch.tensor([[True, False, True], [False, False, False]])
    with Waits() as seen:
        for step in range(3):
            pool.put([8, 9], pictures([8, 9], 3, step), good)
            pool.draw(0, step, prompts=2, views=2)
        assert seen.counts.total() == 0, +seen.counts
        pool.pictures[pool.prompt_ids != EMPTY]  # shows that we would see it
    assert seen.counts.total() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_put_and_draw_do_not_synchronise_cuda() -> None:
    device = torch.device("cuda")
    pool = ImagePool.empty(4, 3, 1, 1, device)
    fresh, good = pictures([8, 9], 3, 0).to(device), torch.tensor([[True, False, True], [False] * 3]).to(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(5):
            pool.put([8, 9], fresh, good)
            drawn = pool.draw(0, step, prompts=2, views=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert drawn.labels.is_cuda and drawn.pictures.is_cuda and set(drawn.labels.tolist()) == {8}
