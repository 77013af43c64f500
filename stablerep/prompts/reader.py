"""Prompts from text, CSV, JSON or Parquet files. A prompt's id is its row number.

A table may also say, for some rows or all, with what guidance_scale, negative_prompt and seed to paint them, and to
which class (label) they belong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from stablerep.config import UserError
from stablerep.prompts.encoding import EncodingError
from stablerep.prompts.table import NoColumn, column_key, read_rows

NO_NEGATIVE_PROMPT = "-"  # an empty cell says nothing: CSV knows no other empty text
COLUMNS = ("prompt", "caption", "text")  # the first of these that a table has
LABELS = ("label", "class", "concept")  # likewise


@dataclass(frozen=True)
class Prompt:
    id: int
    text: str
    guidance_scale: float | None = None  # None: the run's own
    negative_prompt: str | None = None  # "": none, whatever the run's
    seed: int | None = None
    problem: str = ""  # why its row holds no text; it is named and counted, the others are painted
    label: str | None = None  # None: no row of the file has one; "": this one has none


def read_prompts(path: Path, encoding: str | None = None, csv_plain: bool = False) -> list[Prompt]:
    """Read a prompts file.

    .txt has a prompt a line; .csv (its header says whether with commas, semicolons or tabs), .tsv, .jsonl, .json (an
    array) and .parquet have a column prompt, caption or text. Names of columns count without case and outer blanks.

    Columns guidance_scale, negative_prompt and seed override the run's own where they are not empty; a negative_prompt
    of "-" is none at all. A column label, class or concept is kept.
    An empty line between others is a prompt too (the unconditional picture), so that ids stay row numbers. So is a row
    that holds no text: its prompt has a problem instead.

    Args:
        encoding: of a text file; None: what its byte order mark says, or UTF-8.
        csv_plain: a line of a CSV of one column is one prompt, with all its commas.

    Raises:
        UserError: no such file, an unknown ending or another encoding, no prompt in it, a row of a CSV with cells too
            many or too few or an open quote, or a setting out of range.
    """
    try:
        prompts = [_prompt(number, row) for number, row in enumerate(read_rows(path, COLUMNS, encoding, csv_plain))]
    except FileNotFoundError as error:
        raise UserError(f"--prompts {path} does not exist") from error
    except EncodingError as error:
        raise UserError(
            f"--prompts {path} {error}; it is probably {error.likely}: add --encoding {error.likely}"
        ) from error
    except NoColumn as error:
        raise UserError(f"--prompts {path} {_without_column(error.columns)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {path} cannot be read: {' '.join(str(error).split())}") from error
    if not any(prompt.text for prompt in prompts):
        problem = next((f"row {prompt.id}: {prompt.problem}" for prompt in prompts if prompt.problem), "")
        if problem:
            raise UserError(f"--prompts {path} cannot be read: {problem}")
        raise UserError(f"--prompts {path} is empty; write one prompt a line")
    if any(prompt.label for prompt in prompts):
        return [prompt if prompt.label else dataclasses.replace(prompt, label="") for prompt in prompts]
    return prompts


def without_labels(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts as a version before labels read them."""
    return [dataclasses.replace(prompt, label=None) for prompt in prompts]


def _without_column(columns: list[str]) -> str:
    has = ", ".join(map(repr, columns[:10])) or "none"
    return f"has no column {', '.join(COLUMNS)}; its columns are {has}: rename the one with the prompts"


def _prompt(number: int, row: Any) -> Prompt:
    """The prompt of a row: text, a mapping with one of the columns, or the error that stood in its way."""
    if isinstance(row, ValueError):
        return Prompt(number, "", problem=f"is no JSON: {row}")
    settings: dict[str, Any] = {}
    if isinstance(row, dict):
        columns = _columns(tuple(row))
        if columns.text is None:
            return Prompt(number, "", problem=f"no column {', '.join(COLUMNS)}")
        try:
            settings = {
                "guidance_scale": _guidance_scale(row.get(columns.guidance_scale)),
                "negative_prompt": _negative_prompt(row.get(columns.negative_prompt)),
                "seed": _seed(row.get(columns.seed)),
                "label": _label(row.get(columns.label)),
            }
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        row = "" if _is_missing(row[columns.text]) else row[columns.text]
    if isinstance(row, int | float):
        row = str(row)
    if not isinstance(row, str):
        return Prompt(number, "", problem=f"is no text but a {type(row).__name__}")
    try:
        row.encode()
    except UnicodeEncodeError:
        return Prompt(number, "", problem="holds half of a character (a lone surrogate)")
    return Prompt(number, " ".join(row.split()), **settings)


class _Columns(NamedTuple):
    """How a table spells the columns that are read; None where it has none."""

    text: str | None
    label: str | None
    guidance_scale: str | None
    negative_prompt: str | None
    seed: str | None


@lru_cache(maxsize=1024)  # asked of each row
def _columns(names: tuple[str, ...]) -> _Columns:
    """A column that is spelled as here goes before its likes."""
    by_key: dict[str, str] = {}
    for name in names:
        by_key.setdefault(column_key(name), name)
    by_key |= {name: name for name in names if name in by_key}
    text = next((name for name in COLUMNS if name in names), None)
    return _Columns(
        text or next((by_key[name] for name in COLUMNS if name in by_key), None),
        next((by_key[name] for name in LABELS if name in by_key), None),
        *(by_key.get(name) for name in _Columns._fields[2:]),
    )


def _label(value: Any) -> str | None:
    return None if _is_missing(value) else " ".join(str(value).split())


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
