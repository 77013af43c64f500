"""Prompts from text, CSV, JSONL or Parquet files. A prompt's id is its row number."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stablerep.config import UserError

COLUMNS = ("prompt", "caption", "text")  # the first of these that a table has


@dataclass(frozen=True)
class Prompt:
    id: int
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompts file: .txt has one a line, .csv, .jsonl and .parquet a column prompt, caption or text.

    An empty line between others is a prompt too (the unconditional picture), so that ids stay row numbers.

    Raises:
        UserError: no such file, an unknown ending, no such column, or no prompt in it.
    """
    readers = {".txt": _read_text, ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"--prompts {path}: unknown ending {path.suffix!r}; use one of {', '.join(readers)}")
    try:
        texts = reader(path)
    except FileNotFoundError as error:
        raise UserError(f"--prompts {path} does not exist") from error
    except (OSError, UnicodeDecodeError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"--prompts {path} cannot be read: {' '.join(str(error).split())}") from error
    if not any(text.strip() for text in texts):
        raise UserError(f"--prompts {path} is empty; write one prompt a line")
    return [Prompt(number, " ".join(text.split())) for number, text in enumerate(texts)]


def _read_text(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").rstrip().splitlines()


def _read_csv(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [_text_of(row) for row in rows]


def _read_jsonl(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [_text_of(json.loads(line)) for line in lines if line.strip()]


def _read_parquet(path: Path) -> list[str]:
    return [_text_of(row) for row in pq.read_table(path).to_pylist()]


def _text_of(row: Any) -> str:
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        for column in COLUMNS:
            if column in row:
                return "" if row[column] is None else str(row[column])
    raise ValueError(f"no column {', '.join(COLUMNS)}")
