"""Where the pictures of a --data lie, and which of them belong together: shards, tars, a table of paths, a folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stablerep.config import UserError
from stablerep.data.picture_files import PICTURE_ENDINGS, find_pictures, log_not_read
from stablerep.data.tables import TABLE_ENDINGS, PictureRow, read_picture_table
from stablerep.data.tars import index_tar
from stablerep.prompts.text import caption_key
from stablerep.shards import open_shards
from stablerep.storage import Folder, RemotePath, place

log = logging.getLogger("stablerep.data")


@dataclass(frozen=True)
class ImageIndex:
    """Where N encoded pictures lie; a file may hold one picture or thousands."""

    files: tuple[Folder, ...]
    file: NDArray[np.int32]  # [N] index into files
    offset: NDArray[np.int64]  # [N] bytes from the start of that file; in a Parquet file the row
    size: NDArray[np.int64]  # [N] bytes
    group: NDArray[np.int64]  # [N] equal: of one caption. In a folder the picture's number
    caption: NDArray[np.uint64]  # [N] digest of the caption's key, the same in every --data; 0: none
    shared_captions: int = 0  # prompts whose caption an earlier prompt has too: they are one group
    classes: NDArray[np.str_] | None = None  # [N] names, where the data has labels; of a folder those of CLASS/
    splits: NDArray[np.str_] | None = None  # [N] as the data names them: train, val, test
    digests: Mapping[int, tuple[str, int]] = field(default_factory=dict)  # sha256 and bytes of remote files
    not_read: Mapping[str, int] = field(default_factory=dict)  # files with other endings
    is_ours: bool = False  # shards of stablerep-gen: damage is mended by painting again
    texts: pa.DictionaryArray | None = None  # [N] captions, where they were asked for

    def __len__(self) -> int:
        return len(self.file)

    @property
    def has_groups(self) -> bool:
        """Whether some pictures belong together, as those of a prompt do."""
        return self.is_ours or len(np.unique(self.group)) < len(self)

    def where(self, image: int) -> str:
        """A picture in words, for people and for records; the same in every run."""
        file = self.files[self.file[image]]
        if self.offset[image] == 0 and str(file).lower().endswith(PICTURE_ENDINGS):
            return str(file)
        if str(file).endswith(".parquet"):
            return f"{file} (row {self.offset[image]})"
        return f"{file} ({self.size[image]} bytes at {self.offset[image]})"


def index_images(data: Folder, *, texts: bool = False) -> ImageIndex:
    """Index what a --data names; with texts, the captions themselves too, which else are only told apart.

    A folder with dataset.json holds shards of stablerep-gen, one with .tar files those of WebDataset; any other folder
    is searched for pictures. A file is a table of paths (.csv, .tsv, .jsonl, .json, .parquet; a Parquet file may hold
    the pictures themselves) or one tar.

    Raises:
        UserError: nothing there, nothing in it that is read, or something that is damaged.
    """
    if isinstance(data, RemotePath):
        return index_shards(data, texts=texts)
    if not data.exists():
        raise UserError(f"--data {data} does not exist")
    if data.is_file():
        if data.suffix.lower() in TABLE_ENDINGS:
            return index_table(data, texts=texts)
        if data.suffix.lower() == ".tar":
            return index_tars([data], texts=texts)
        raise UserError(
            f"--data {data} is a file of no kind that is read; give a folder of pictures or shards, a .tar, or a table "
            f"of paths ({', '.join(TABLE_ENDINGS)})"
        )
    if (data / "dataset.json").exists():
        return index_shards(data, texts=texts)
    if tars := sorted(path for path in data.glob("*.tar") if not path.name.startswith(".")):
        return index_tars(tars, texts=texts)
    return index_folder(data)


def index_shards(out: Folder, *, texts: bool = False) -> ImageIndex:
    """Index the kept pictures of all done shards of stablerep-gen.

    Raises:
        UserError: no done shard, or a shard whose tar or rows are missing, cut short or unreadable.
    """
    opened = open_shards(out)
    tables = [rows.filter(rows["kept"]) for _, rows, _ in opened]
    prompt_id = np.concatenate([table["prompt_id"].to_numpy() for table in tables])
    caption = np.concatenate([_of_dictionary(table["prompt"], caption_digest) for table in tables])
    group, shared = _merge_captions(prompt_id, caption)
    labelled = all("label" in table.column_names for table in tables)
    prompts = pa.chunked_array([chunk for table in tables for chunk in table["prompt"].chunks], pa.string())
    classes = [np.asarray(table["label"].to_pylist(), dtype=object) for table in tables] if labelled else []
    return ImageIndex(
        files=tuple(tar for tar, _, _ in opened),
        file=np.repeat(np.arange(len(opened), dtype=np.int32), [len(table) for table in tables]),
        offset=np.concatenate([table["offset"].to_numpy() for table in tables]),
        size=np.concatenate([table["size"].to_numpy() for table in tables]),
        group=group,
        caption=caption,
        shared_captions=shared,
        classes=_names(np.concatenate(classes)) if labelled else None,
        digests={
            number: (stats["tar_sha256"], stats["tar_bytes"]) for number, (_, _, stats) in enumerate(opened)
        } if isinstance(out, RemotePath) else {},
        is_ours=True,
        texts=_dictionary(prompts) if texts else None,
    )  # fmt: skip


def index_folder(folder: Path) -> ImageIndex:
    """Index every picture below a folder; each is its own group."""
    found = find_pictures(folder)
    if not found.files:
        if sweep := sorted(folder.glob("*/dataset.json")):
            raise UserError(f"--data {folder} holds several runs; take one, for instance {sweep[0].parent}")
        raise UserError(f"--data {folder} holds no pictures ({', '.join(PICTURE_ENDINGS)}) and no shards")
    log_not_read(f"--data {folder}", found.not_read)
    return index_files(found.files, _folder_names(folder, found.files), not_read=found.not_read)


def _folder_names(folder: Path, files: Sequence[Path]) -> NDArray[np.str_] | None:
    """The folder in `folder` that each file lies in; None where all lie in one."""
    parts = [path.relative_to(folder).parts for path in files]
    names = [each[0] if len(each) > 1 else "" for each in parts]
    return np.array(names, dtype=str) if len(set(names)) > 1 else None


def index_table(path: Path, *, texts: bool = False) -> ImageIndex:
    """Index a table of paths (or of pictures, in Parquet), with captions, labels and splits where it has them."""
    rows = read_picture_table(path)
    if rows.sizes is not None:
        numbers = np.arange(len(rows.rows))
        return _with_columns(_Places((path,), np.zeros(len(numbers), np.int32), numbers, rows.sizes), rows.rows, texts)
    missing = [row.path for row in rows.rows if not row.path.exists()]
    if len(missing) == len(rows.rows):
        raise UserError(f"--data {path}: none of its {len(missing)} pictures exists, first {missing[0]}")
    return _with_columns(_places_of_files([row.path for row in rows.rows]), rows.rows, texts)


def index_tars(tars: Sequence[Path], *, texts: bool = False) -> ImageIndex:
    """Index tars of WebDataset: the pictures of a key are one group, or those of a caption (.txt, or in the .json)."""
    members = [index_tar(tar) for tar in tars]
    rows = [row for each in members for row in each.rows]
    if not rows:
        raise UserError(f"--data {tars[0].parent}: no picture in its {len(tars)} tars")
    file = np.repeat(np.arange(len(tars), dtype=np.int32), [len(each.rows) for each in members])
    offset = np.concatenate([each.offset for each in members])
    size = np.concatenate([each.size for each in members])
    return _with_columns(_Places(tuple(tars), file, offset, size), rows, texts)


def index_files(
    files: Sequence[Path], classes: NDArray[np.str_] | None = None, not_read: Mapping[str, int] | None = None
) -> ImageIndex:
    """Index picture files, each its own group."""
    places = _places_of_files(files)
    return ImageIndex(
        places.files, places.file, places.offset, places.size,
        group=np.arange(len(files)), caption=np.zeros(len(files), np.uint64), classes=classes, not_read=not_read or {},
    )  # fmt: skip


def caption_digest(caption: str) -> int:
    """64 bits of the caption's key; 0 for the empty caption, whose pictures show anything and are no positives."""
    key = caption_key(caption)
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") if key else 0


@dataclass(frozen=True)
class _Places:
    files: tuple[Folder, ...]
    file: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]


def _places_of_files(files: Sequence[Path]) -> _Places:
    count = len(files)
    sizes = np.array([_size(path) for path in files], np.int64)
    return _Places(tuple(files), np.arange(count, dtype=np.int32), np.zeros(count, np.int64), sizes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a row of a table names it; damaged.py counts it when its turn comes
        return 0


def _with_columns(places: _Places, rows: Sequence[PictureRow], texts: bool = False) -> ImageIndex:
    """An index of pictures that may have keys, captions, labels and splits."""
    caption = np.array([caption_digest(row.caption or "") for row in rows], np.uint64)
    numbers: dict[str, int] = {}
    keys = np.array([numbers.setdefault(row.key or str(n), len(numbers)) for n, row in enumerate(rows)], np.int64)
    group, shared = _merge_captions(keys, caption)
    return ImageIndex(
        places.files, places.file, places.offset, places.size, group, caption, shared,
        classes=_column(row.label for row in rows),
        splits=_column(row.split for row in rows),
        texts=_dictionary(pa.chunked_array([[row.caption for row in rows]], pa.string())) if texts else None,
    )  # fmt: skip


def _column(values: Iterable[str | None]) -> NDArray[np.str_] | None:
    column = [value or "" for value in values]
    return np.array(column, dtype=str) if any(column) else None


def _names(values: NDArray[np.object_]) -> NDArray[np.str_]:
    return np.array([value or "" for value in values], dtype=str)


def _of_dictionary(texts: pa.ChunkedArray, function: Callable[[str], int]) -> NDArray[np.uint64]:
    """The function of each text, asked once for each different one."""
    encoded = _dictionary(texts)
    values = np.array([function(text or "") for text in encoded.dictionary.to_pylist()], np.uint64)
    return values[encoded.indices.to_numpy()] if len(values) else np.zeros(0, np.uint64)


def _dictionary(texts: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = texts.dictionary_encode().combine_chunks()
    return encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded  # older pyarrow keeps the one chunk


def _merge_captions(group: NDArray[np.int64], caption: NDArray[np.uint64]) -> tuple[NDArray[np.int64], int]:
    """Groups of the same caption as one, under the lowest of their numbers; and how many were merged into others."""
    groups, first = np.unique(group, return_index=True)
    captions = caption[first]
    _, earliest, inverse = np.unique(captions, return_index=True, return_inverse=True)
    merged = np.where(captions == 0, groups, groups[earliest][inverse])
    return merged[np.searchsorted(groups, group)], int((merged != groups).sum())


def split_weight(data: str, flag: str) -> tuple[Folder, float]:
    """PATH:WEIGHT, or PATH for weight 1; a URL may stand for PATH."""
    path, colon, text = data.rpartition(":")
    if not colon or text.startswith("//") or Path(data).exists():
        return place(data), 1.0
    try:
        weight = float(text)
    except ValueError:
        return place(data), 1.0  # a path with a colon in it
    if not 0 < weight < float("inf"):
        raise UserError(f"{flag} {data}: the weight after the colon must be above 0, got {text}")
    return place(path), weight
