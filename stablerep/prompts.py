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
    problem: str = ""  # why its row holds no text; it is named and counted, the others are painted


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompts file: .txt has one a line, .csv, .jsonl and .parquet a column prompt, caption or text.

    An empty line between others is a prompt too (the unconditional picture), so that ids stay row numbers. So is a row
    that holds no text: its prompt has a problem instead.

    Raises:
        UserError: no such file, an unknown ending, or no prompt in it.
    """
    readers = {".txt": _read_text, ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"--prompts {path}: unknown ending {path.suffix!r}; use one of {', '.join(readers)}")
    try:
        prompts = [_prompt(number, row) for number, row in enumerate(reader(path))]
    except FileNotFoundError as error:
        raise UserError(f"--prompts {path} does not exist") from error
    except (OSError, UnicodeDecodeError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"--prompts {path} cannot be read: {' '.join(str(error).split())}") from error
    if not any(prompt.text for prompt in prompts):
        problem = next((f"row {prompt.id}: {prompt.problem}" for prompt in prompts if prompt.problem), "")
        if problem:
            raise UserError(f"--prompts {path} cannot be read: {problem}")
        raise UserError(f"--prompts {path} is empty; write one prompt a line")
    return prompts


def _read_text(path: Path) -> list[Any]:
    return path.read_text(encoding="utf-8-sig").rstrip().splitlines()


def _read_csv(path: Path) -> list[Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _read_jsonl(path: Path) -> list[Any]:
    return [_json(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _read_parquet(path: Path) -> list[Any]:
    return pq.read_table(path).to_pylist()


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return error


def _prompt(number: int, row: Any) -> Prompt:
    """The prompt of a row: text, a mapping with one of the columns, or the error that stood in its way."""
    if isinstance(row, ValueError):
        return Prompt(number, "", f"is no JSON: {row}")
    if isinstance(row, dict):
        column = next((column for column in COLUMNS if column in row), None)
        if column is None:
            return Prompt(number, "", f"no column {', '.join(COLUMNS)}")
        row = "" if row[column] is None else row[column]
    if isinstance(row, int | float):
        row = str(row)
    if not isinstance(row, str):
        return Prompt(number, "", f"is no text but a {type(row).__name__}")
    try:
        row.encode()
    except UnicodeEncodeError:
        return Prompt(number, "", "holds half of a character (a lone surrogate)")
    return Prompt(number, " ".join(row.split()))
