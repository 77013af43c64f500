"""Tables of pictures: a row names a file, or in Parquet holds it, with a caption, a label and a split where known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stablerep.config import UserError
from stablerep.prompts.encoding import EncodingError
from stablerep.prompts.table import NoColumn, column_key, read_rows

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
# The first of each that a table has, in upper or lower case.
PATHS = ("path", "file", "filename", "file_name", "filepath", "image_path", "image")
CAPTIONS = ("caption", "prompt", "text")
LABELS = ("label", "class", "class_name", "target", "category")
SPLITS = ("split", "set", "subset", "partition")


@dataclass(frozen=True)
class PictureRow:
    path: Path = Path()
    caption: str | None = None
    label: str | None = None
    split: str | None = None
    key: str | None = None  # pictures with the same key are of one sample


@dataclass(frozen=True)
class PictureTable:
    rows: Sequence[PictureRow]
    sizes: NDArray[np.int64] | None = None  # bytes of the pictures, where the Parquet file itself holds them


def read_picture_table(path: Path) -> PictureTable:
    """Read a table; relative paths are from the folder of the table.

    Raises:
        UserError: it cannot be read, has no column of paths, or a row without one.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    try:
        rows = read_rows(path, PATHS)
    except NoColumn as error:
        raise _no_path(path, error.columns) from error
    except (OSError, ValueError) as error:
        likely = f"; it is probably {error.likely}: save it as UTF-8" if isinstance(error, EncodingError) else ""
        raise UserError(f"--data {path} cannot be read: {' '.join(str(error).split())[:200]}{likely}") from error
    return PictureTable([_row(path, number, row) for number, row in enumerate(rows)])


def embedded_pictures(path: Path, row_group: int) -> list[bytes]:
    """The encoded pictures of a row group of a Parquet file."""
    file = pq.ParquetFile(path)
    column = _embedded_column(file.schema_arrow)
    assert column is not None
    return [_bytes(value) for value in file.read_row_group(row_group, [column])[column].to_pylist()]


def row_group_starts(path: Path) -> list[int]:
    """The first row of each row group of a Parquet file."""
    metadata = pq.read_metadata(path)
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return [0, *np.cumsum(counts[:-1]).tolist()]


def _read_parquet(path: Path) -> PictureTable:
    try:
        file = pq.ParquetFile(path)
        embedded = _embedded_column(file.schema_arrow)
        others = [name for name in file.schema_arrow.names if name != embedded]
        rows = [dict(row) for row in file.read(others).to_pylist()] if others else [{}] * file.metadata.num_rows
        _name_classes(file.schema_arrow, rows)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--data {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if embedded is None:
        if not {column_key(name) for name in others} & set(PATHS):
            raise _no_path(path, others)
        return PictureTable([_row(path, number, row) for number, row in enumerate(rows)])
    sizes = [
        pc.binary_length(_flat(file.read_row_group(group, [embedded])[embedded])).to_numpy(zero_copy_only=False)
        for group in range(file.num_row_groups)
    ]
    return PictureTable([_row(path, n, row | {"path": str(path)}) for n, row in enumerate(rows)], np.concatenate(sizes))


def _embedded_column(schema: pa.Schema) -> str | None:
    """The column that holds encoded pictures: binary, or Hugging Face's struct of bytes and path."""
    for column in schema:
        struct = pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        if struct or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            return column.name
    return None


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _bytes(value: Any) -> bytes:
    return (value["bytes"] if isinstance(value, dict) else value) or b""


def _name_classes(schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    """Hugging Face's class numbers as the names that the schema's metadata has for them."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for column, feature in about.get("info", {}).get("features", {}).items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            for row in rows:
                row[column] = feature["names"][row[column]] if row[column] is not None else None


def _row(table: Path, number: int, row: Mapping[str, Any]) -> PictureRow:
    if not isinstance(row, Mapping):
        raise UserError(f"--data {table}: row {number} is no mapping of columns to values ({str(row)[:80]})")
    values = {column_key(name): value for name, value in row.items()}
    path = _first(values, PATHS)
    if path is None:
        raise UserError(f"--data {table}: row {number} names no file; fill its path, or take the row out")
    return PictureRow(table.parent / path, _first(values, CAPTIONS), _first(values, LABELS), _first(values, SPLITS))


def _no_path(table: Path, columns: Sequence[str]) -> UserError:
    found = ", ".join(columns) or "none"
    return UserError(f"--data {table} has no column of paths ({', '.join(PATHS)}); its columns are {found}")


def _first(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    found = next((values[name] for name in names if name in values), None)
    return None if found is None or str(found).strip() == "" else str(found).strip()
