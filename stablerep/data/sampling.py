"""Which pictures make up the batch of a step: a pure function of (seed, step), the same on every rank."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stablerep.config import UserError, fingerprint
from stablerep.data.index import ImageIndex, caption_digest, index_images, split_weight
from stablerep.storage import Folder

GroupBy = Literal["prompt", "image", "class", "caption"]
# Streams of random numbers, so that one use never shifts another: those of pool.py, online.py, damaged.py, masking.py
# too.
ORDER, CHOICE, POOL_ORDER, POOL_CHOICE, PROMPT_ORDER, STAND_INS, MASKS = range(7)

MENDS = {
    "class": "give a folder with CLASS/ folders, a table with a label column, or shards of prompts with labels",
    "caption": "give shards, a table with a caption column, or tars with .txt files",
}

log = logging.getLogger("stablerep.data")


def random_stream(seed: int, stream: int, step: int, source: int = 0) -> np.random.Generator:
    """Numbers that depend on these four alone: a counter, no state to save."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, step, source]))


def deal(step: int, share: int, total: int, order: Callable[[int], NDArray[np.int64]]) -> NDArray[np.int64]:  # [share]
    """What step gets of 0 .. total-1 when each gets `share`, in the order that each round has."""
    position = step * share + np.arange(share)
    dealt = [order(int(e))[position[position // total == e] % total] for e in np.unique(position // total)]
    return np.concatenate(dealt) if dealt else position


def choose_views(
    random: np.random.Generator, count: NDArray[np.int64], views: int
) -> NDArray[np.int64]:  # [G, views], each row out of 0 .. count-1, drawn without replacement
    keys = random.random((len(count), int(count.max())))  # the smallest win
    keys[np.arange(keys.shape[1]) >= count[:, None]] = np.inf
    return np.argsort(keys, axis=1)[:, :views]


@dataclass(frozen=True)
class Source:
    """One --data: its pictures by group: those of a prompt, or a single picture."""

    index: ImageIndex
    weight: float
    members: NDArray[np.int64]  # picture numbers, those of a group side by side
    first: NDArray[np.int64]  # [G] where a group starts in members
    count: NDArray[np.int64]  # [G] how many it has
    caption: NDArray[np.uint64]  # [G] of a group its ImageIndex.caption, or a digest of its class; 0: none

    def pictures_of(self, group: int) -> NDArray[np.int64]:
        return self.members[self.first[group] : self.first[group] + self.count[group]]

    def text(self, image: int) -> str:
        assert self.index.texts is not None, "open_source(texts=True) keeps them"
        return self.index.texts[image].as_py() or ""


@dataclass(frozen=True)
class Picks:
    """The pictures of one batch; the views of a group lie side by side."""

    source: NDArray[np.int64]  # [B] index into the sampler's sources
    image: NDArray[np.int64]  # [B] index into that source's pictures
    group: NDArray[np.int64]  # [B] index into that source's groups
    label: NDArray[np.int64]  # [B] equal = same group, or groups of the same caption, over all sources


def open_source(data: str, group_by: GroupBy, views: int, *, texts: bool = False) -> Source:
    """Open PATH or PATH:WEIGHT.

    With group_by "prompt" the views of a group are different pictures of one caption, which several prompts may have;
    pictures without captions give several views of the same one. With the others that is so wherever they lie: with
    "image" nothing else is alike, with "class" and "caption" pictures of the same one have the same label.

    Args:
        texts: keep the captions; pictures without one are left out.

    Raises:
        UserError: nothing there, a weight that is none, shards with fewer pictures a prompt than views, or no picture
            with a class or caption where that is asked for.
    """
    path, weight = split_weight(data, "--data")
    index = index_images(path, texts=texts)
    # A caption for each photo, as image and text pairs have: views of the photo, and those of an equal caption with it.
    enough = index.is_ours or np.unique(index.group, return_counts=True)[1].max(initial=0) >= views
    by_prompt = group_by == "prompt" and index.has_groups and enough
    group = index.group if by_prompt else np.arange(len(index))
    members = np.argsort(group, kind="stable")
    _, first, count = np.unique(group[members], return_index=True, return_counts=True)
    if group_by == "prompt" and index.shared_captions:
        log.info("%s: %d prompts have the caption of an earlier one and count as it", path, index.shared_captions)
    if by_prompt and count.max(initial=0) < views:
        raise UserError(
            f"--data {path} holds {count.max(initial=0)} pictures a prompt, fewer than --views-per-prompt {views}; "
            f"lower --views-per-prompt, or run stablerep-gen with --num-images-per-prompt {views} or more"
        )
    if by_prompt and (short := count < views).any():
        log.warning(
            "%s: %d of %d prompts kept fewer than %d pictures and are left out", path, short.sum(), len(count), views
        )
        first, count = first[~short], count[~short]
    if group_by == "class":
        alike = _class_digests(path, index)
    elif group_by == "image":
        alike = np.zeros(len(index), np.uint64)
    else:
        alike = index.caption
    if group_by == "class" or texts:
        what = "class" if group_by == "class" else "caption"
        keep = alike[members[first]] != 0
        if not keep.any():
            raise UserError(f"--data {path} has no {what} of any picture; {MENDS[what]}")
        if not keep.all():
            aside = " or set aside for a test" if group_by == "class" and index.splits is not None else ""
            log.warning("%s: %d pictures without a %s%s are left out", path, count[~keep].sum(), what, aside)
        first, count = first[keep], count[keep]
    return Source(index, weight, members, first, count, alike[members[first]])


def _class_digests(path: Folder, index: ImageIndex) -> NDArray[np.uint64]:  # [N]; 0: none, or set aside for a test
    names = index.classes if index.classes is not None else np.zeros(len(index), str)
    if set(names.tolist()) - {""} and set(names.tolist()) <= {"", "train", "test", "val", "valid", "validation"}:
        raise UserError(f"--data {path}: its folders are {', '.join(sorted(set(names.tolist())))}; give {path}/train")
    digests = {name: caption_digest(name) for name in set(names.tolist())}
    found = np.array([digests[name] for name in names.tolist()], np.uint64)
    if index.splits is not None and (train := np.char.lower(index.splits) == "train").any():
        found[~train] = 0
    return found


def warn_of_same_files(data: Sequence[str], sources: Sequence[Source]) -> None:
    """Say which --data share files, whose pictures then count twice; links to folders are the folders."""
    real = lru_cache(None)(os.path.realpath)
    files = [
        {f"{real(file.parent)}/{file.name}" if isinstance(file, Path) else str(file) for file in source.index.files}
        for source in sources
    ]
    for (one, theirs), (other, ours) in combinations(zip(data, files, strict=True), 2):
        if shared := len(theirs & ours):
            log.warning("--data %s and --data %s share %d files, whose pictures count twice", one, other, shared)


class Sampler:
    """Deals the groups of all sources out to steps, mixed in every batch by weight; an epoch shows each group once.

    A source of more weight than groups comes round more often than the others; no batch is cut short at its end.
    """

    def __init__(self, sources: Sequence[Source], groups_per_step: int, views: int, seed: int) -> None:
        self.sources, self.views, self.seed = tuple(sources), views, seed
        self._groups = share_out(groups_per_step, [source.weight for source in sources])
        self._label_base = np.cumsum([0] + [len(source.count) for source in sources])
        self._label_of = _labels(np.concatenate([source.caption for source in sources]))
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}  # source -> its epoch and the order of it

    @property
    def num_groups(self) -> int:
        return int(self._label_base[-1])

    @property
    def images_per_step(self) -> int:
        return sum(self._groups) * self.views

    @property
    def steps_per_epoch(self) -> float:
        return self.num_groups / sum(self._groups)

    def labels_of(self, source: int, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._label_of[groups + self._label_base[source]]

    def fingerprint(self) -> str:
        """Changes when pictures come or go, which would change what a step means."""
        return fingerprint([[len(s.index), int(s.index.size.sum()), len(s.count)] for s in self.sources])

    def picks(self, step: int) -> Picks:
        """The pictures of one step, for all ranks together."""
        picks = [self._picks(number, step) for number in range(len(self.sources))]
        return Picks(*(np.concatenate(column) for column in zip(*picks, strict=True)))

    def _picks(self, number: int, step: int) -> tuple[NDArray[np.int64], ...]:
        source = self.sources[number]
        group = self._deal(number, step)  # [G]
        if source.count.max() == 1:
            chosen = np.zeros((len(group), self.views), np.int64)
        else:
            chosen = choose_views(random_stream(self.seed, CHOICE, step, number), source.count[group], self.views)
        image = source.members[source.first[group][:, None] + chosen]  # [G, views]
        label = np.repeat(self.labels_of(number, group), self.views)
        return np.full(image.size, number), image.reshape(-1), np.repeat(group, self.views), label

    def _deal(self, number: int, step: int) -> NDArray[np.int64]:
        """The next groups of one source, in an order drawn anew each time it comes round."""
        return deal(step, self._groups[number], len(self.sources[number].count), partial(self._order, number))

    def _order(self, number: int, epoch: int) -> NDArray[np.int64]:
        if self._orders.get(number, (-1,))[0] != epoch:
            order = random_stream(self.seed, ORDER, epoch, number).permutation(len(self.sources[number].count))
            self._orders[number] = (epoch, order)
        return self._orders[number][1]


def _labels(caption: NDArray[np.uint64]) -> NDArray[np.int64]:  # [G] of all sources' groups
    """A number for each group; that of the first group with the same caption, where there is one."""
    labels = np.arange(len(caption))
    captioned = np.flatnonzero(caption)
    _, first, inverse = np.unique(caption[captioned], return_index=True, return_inverse=True)
    labels[captioned] = captioned[first][inverse]
    return labels


def share_out(total: int, weights: Sequence[float]) -> list[int]:
    """Split a whole number by weight; what rounding leaves goes to the largest remainders."""
    exact = np.asarray(weights) / sum(weights) * total
    shares = np.floor(exact).astype(int)
    for number in np.argsort(shares - exact, kind="stable")[: total - shares.sum()]:
        shares[number] += 1
    if (shares == 0).any():
        raise UserError(
            f"--batch-size gives {total} groups a step, too few for {len(weights)} sources "
            f"of weights {tuple(weights)}; raise --batch-size or the smallest weight"
        )
    return shares.tolist()
