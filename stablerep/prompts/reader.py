"""Prompts from text, CSV, JSONL or Parquet files. A prompt's id is its row number.

A table may also say, for some rows or all, with what guidance_scale, negative_prompt and seed to paint them.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stablerep.config import UserError

NO_NEGATIVE_PROMPT = "-"  # an empty cell says nothing: CSV knows no other empty text
COLUMNS = ("prompt", "caption", "text")  # the first of these that a table has


@dataclass(frozen=True)
class Prompt:
    id: int
    text: str
    guidance_scale: float | None = None  # None: the run's own
    negative_prompt: str | None = None  # "": none, whatever the run's
    seed: int | None = None
    problem: str = ""  # why its row holds no text; it is named and counted, the others are painted


def read_prompts(path: Path) -> list[Prompt]:
    """Read a prompts file: .txt has one a line, .csv, .jsonl and .parquet a column prompt, caption or text.

    Columns guidance_scale, negative_prompt and seed override the run's own where they are not empty; a negative_prompt
    of "-" is none at all.
    An empty line between others is a prompt too (the unconditional picture), so that ids stay row numbers. So is a row
    that holds no text: its prompt has a problem instead.

    Raises:
        UserError: no such file, an unknown ending, no prompt in it, or a setting out of range.
    """
    readers = {".txt": _read_text, ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"--prompts {path}: unknown ending {path.suffix!r}; use one of {', '.join(readers)}")
    try:
        prompts = [_prompt(number, row) for number, row in enumerate(reader(path))]
    except FileNotFoundError as error:
        raise UserError(f"--prompts {path} does not exist") from error
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise UserError(f"--prompts {path} cannot be read: {' '.join(str(error).split())}") from error
    if not any(prompt.text for prompt in prompts):
        problem = next((f"row {prompt.id}: {prompt.problem}" for prompt in prompts if prompt.problem), "")
        if problem:
            raise UserError(f"--prompts {path} cannot be read: {problem}")
        raise UserError(f"--prompts {path} is empty; write one prompt a line")
    return prompts


def _read_text(path: Path) -> list[Any]:
    return list(path.read_text(encoding="utf-8-sig").rstrip().splitlines())


def _read_csv(path: Path) -> list[Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _read_jsonl(path: Path) -> list[Any]:
    return [_json(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow as pa  # 0.2 s: only a Parquet file pays for it
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return error


def _prompt(number: int, row: Any) -> Prompt:
    """The prompt of a row: text, a mapping with one of the columns, or the error that stood in its way."""
    if isinstance(row, ValueError):
        return Prompt(number, "", problem=f"is no JSON: {row}")
    settings: dict[str, Any] = {}
    if isinstance(row, dict):
        column = next((column for column in COLUMNS if column in row), None)
        if column is None:
            return Prompt(number, "", problem=f"no column {', '.join(COLUMNS)}")
        try:
            settings = {
                "guidance_scale": _guidance_scale(row.get("guidance_scale")),
                "negative_prompt": _negative_prompt(row.get("negative_prompt")),
                "seed": _seed(row.get("seed")),
            }
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        row = "" if _is_missing(row[column]) else row[column]
    if isinstance(row, int | float):
        row = str(row)
    if not isinstance(row, str):
        return Prompt(number, "", problem=f"is no text but a {type(row).__name__}")
    try:
        row.encode()
    except UnicodeEncodeError:
        return Prompt(number, "", problem="holds half of a character (a lone surrogate)")
    return Prompt(number, " ".join(row.split()), **settings)


def _negative_prompt(value: Any) -> str | None:
    words = None if _is_missing(value) else " ".join(str(value).split())
    return "" if words == NO_NEGATIVE_PROMPT else words


def _is_missing(value: Any) -> bool:
    """Empty in CSV, null in JSON and Parquet, NaN where pandas wrote a column of numbers with gaps."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == ""


def _guidance_scale(value: Any) -> float | None:
    if _is_missing(value):
        return None
    try:
        scale = float(value)
    except (TypeError, ValueError):
        scale = math.nan
    if isinstance(value, bool) or not 0 <= scale <= 100:
        raise ValueError(f"guidance_scale must be a number between 0 and 100, got {value!r}")
    return scale


def _seed(value: Any) -> int | None:
    if _is_missing(value):
        return None
    try:
        # pandas makes floats of whole numbers with gaps; those above 2^53 are no longer the ones it was given.
        seed = int(value) if not isinstance(value, float) or (value.is_integer() and abs(value) <= 2**53) else -1
    except (TypeError, ValueError):
        seed = -1
    if isinstance(value, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number between 0 and 2^63 - 1, got {value!r}")
    return seed
