"""Painted pictures that wait for training in the device's memory, and the draw of a batch from them.

strong_augment takes them from there; nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablerep.data.sampling import POOL_CHOICE, POOL_ORDER, choose_views, deal, random_stream

EMPTY = -1  # the prompt id of a slot without pictures
FIRST_KEY = 2**31  # above the numbers of files' pictures: strong_augment draws otherwise for a pool's


@dataclass(frozen=True)
class Drawn:
    """The pictures of one batch; those of a prompt lie side by side."""

    pictures: Tensor  # [B, H, W, 3] uint8 on the device
    labels: Tensor  # [B] int64 on the device: the prompt ids
    keys: Tensor  # [B, 3] int64 on the host, for strong_augment: step, picture of the pool, row of the batch


@dataclass
class ImagePool:
    """A ring of the P prompts that were put last, K pictures each. The newest takes the slot of the oldest.

    Neither put nor draw copies anything to the host or waits for the device.
    """

    pictures: Tensor  # [P, K, H, W, 3] uint8
    prompt_ids: Tensor  # [P] int64; EMPTY where a slot has no pictures
    stand_in: Tensor  # [P] int64: the slot itself, or the next one that is not empty
    rejected: Tensor  # [] int64: how many pictures were not good so far
    num_put: int = 0  # prompts so far; the next one goes to slot num_put % P

    @classmethod
    def empty(
        cls, prompts: int, images_per_prompt: int, height: int, width: int, device: torch.device, num_put: int = 0
    ) -> ImagePool:
        """num_put is another than 0 where a pool is made again that had been in use."""
        return cls(
            pictures=torch.zeros((prompts, images_per_prompt, height, width, 3), dtype=torch.uint8, device=device),
            prompt_ids=torch.full((prompts,), EMPTY, device=device),
            stand_in=torch.arange(prompts, device=device),
            rejected=torch.zeros((), dtype=torch.int64, device=device),
            num_put=num_put,
        )

    @torch.no_grad()
    def put(
        self,
        prompt_ids: Sequence[int],  # [n], from 0; the same id twice is one prompt with twice the pictures
        pictures: Tensor,  # [n, K, H, W, 3] uint8
        good: Tensor,  # [n, K] bool: the others do not enter
    ) -> None:
        """Put n prompts in the place of the n oldest.

        A good picture of the same prompt takes the place of one that is not. A prompt without any leaves its slot
        empty, and draw then takes the next prompt in its stead.

        Raises:
            ValueError: shapes that do not fit the pool, or more prompts than it holds.
        """
        n, (slots, k, *shape) = len(prompt_ids), self.pictures.shape[:5]
        if n > slots or pictures.shape != (n, k, *shape) or good.shape != (n, k):
            raise ValueError(
                f"ImagePool.put: up to {slots} prompts with pictures {[k, *shape]} and good [{k}] each fit, "
                f"got {n} with {list(pictures.shape)} and {list(good.shape)}"
            )
        device = self.pictures.device
        counts = good.sum(1)  # [n]
        good_first = good.logical_not().byte().argsort(dim=1, stable=True)  # [n, K]
        turn = torch.arange(k, device=device) % counts.clamp(min=1)[:, None]  # the good ones in turn
        chosen = good_first.gather(1, turn) + torch.arange(n, device=device)[:, None] * k  # [n, K]
        slot = (torch.arange(n, device=device) + self.num_put) % slots
        filling = pictures.flatten(0, 1).index_select(0, chosen.flatten()).unflatten(0, (n, k))
        self.pictures.index_copy_(0, slot, filling)
        ids = _to_device(np.asarray(prompt_ids, np.int64), device)
        self.prompt_ids.index_copy_(0, slot, torch.where(counts > 0, ids, EMPTY))
        self.stand_in.copy_(_next_filled(self.prompt_ids != EMPTY))
        self.rejected += n * k - counts.sum()
        self.num_put += n

    def draw(self, seed: int, step: int, prompts: int, views: int, rank: int = 0) -> Drawn:
        """The batch of a step: `views` pictures each of `prompts` slots.

        A pure function of its arguments and of what was put; each slot is drawn once before any is drawn again.
        """
        slots, k = self.pictures.shape[:2]
        slot, index = choose(seed, step, slots, k, prompts, views, rank)
        row = np.arange(len(slot)) + rank * len(slot)
        keys = torch.from_numpy(np.stack([np.full_like(slot, step), FIRST_KEY + slot * k + index, row], axis=1))
        slot_on_device, index_on_device = _to_device(np.stack([slot, index]), self.pictures.device)
        filled = self.stand_in[slot_on_device]
        pictures = self.pictures.flatten(0, 1).index_select(0, filled * k + index_on_device)
        return Drawn(pictures, self.prompt_ids[filled], keys)


def choose(
    seed: int, step: int, slots: int, images_per_prompt: int, prompts: int, views: int, rank: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # [prompts * views] each: slot, and which of its pictures
    """Dealt as Sampler deals the groups of shards: slots in an order drawn anew each round, pictures without
    replacement."""
    order = deal(step, prompts, slots, lambda e: random_stream(seed, POOL_ORDER, e, rank).permutation(slots))
    count = np.full(prompts, images_per_prompt)
    index = choose_views(random_stream(seed, POOL_CHOICE, step, rank), count, views)
    return np.repeat(order, views), index.reshape(-1)


def _next_filled(filled: Tensor) -> Tensor:  # [P] bool to [P] int64: the first filled slot at or after each, in a ring
    slots = len(filled)
    slot = torch.arange(2 * slots, device=filled.device)
    at = torch.where(filled.repeat(2), slot, 2 * slots)
    return at.flip(0).cummin(0).values.flip(0)[:slots] % slots


def _to_device(values: NDArray[np.int64], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # from pageable memory the host would wait
