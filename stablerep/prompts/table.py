"""The rows of a prompts file, by its ending: texts, or mappings of a column to its cell."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stablerep.config import UserError
from stablerep.prompts.encoding import decode

DELIMITERS = ",;\t"  # of .csv: Excel takes semicolons where the comma is a decimal point


class NoColumn(ValueError):
    """A table without a column that is needed; columns are those it has."""

    def __init__(self, columns: Iterable[object]) -> None:
        super().__init__()
        self.columns = list(dict.fromkeys(map(str, columns)))


def column_key(name: object) -> str:
    """Under which a column is looked for: " Prompt" is prompt."""
    return " ".join(str(name).split()).casefold()


def read_rows(path: Path, columns: tuple[str, ...], encoding: str | None = None, csv_plain: bool = False) -> list[Any]:
    """A row for each prompt: a text, a mapping with the file's own column names, or the ValueError of a line of JSON.

    Args:
        columns: what one of the header's names must be (of files that have a header).
        encoding: of text files; see encoding.decode.
        csv_plain: in a CSV of one column a line is one cell, whatever delimiters it holds.

    Raises:
        UserError: an unknown ending, or csv_plain for a file that is no CSV.
        OSError, ValueError: a file that cannot be read; EncodingError and NoColumn among them.
    """
    ending = path.suffix.lower()
    if ending not in READERS and ending not in (".csv", ".tsv", ".parquet"):
        known = ", ".join([".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet"])
        raise UserError(f"--prompts {path}: unknown ending {path.suffix!r}; use one of {known}")
    if csv_plain and ending not in (".csv", ".tsv"):
        raise UserError(f"--csv-plain says how a CSV of one column is read; --prompts {path} is none, leave it out")
    if ending == ".parquet":
        if encoding:
            raise UserError(f"--encoding {encoding} is for text files; --prompts {path} knows its own, leave it out")
        return _parquet_rows(path, columns)
    text = decode(path.read_bytes(), encoding)
    if ending in READERS:
        rows = READERS[ending](text)
        if rows and all(isinstance(row, dict) for row in rows):
            _check_header([name for row in rows for name in row], columns)
        return rows
    return list((_plain_rows if csv_plain else _csv_rows)(text, columns, "\t" if ending == ".tsv" else DELIMITERS))


def _text_rows(text: str) -> list[Any]:
    return list(text.rstrip().splitlines())


def _jsonl_rows(text: str) -> list[Any]:
    return [_json(line) for line in text.splitlines() if line.strip()]


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return error


def _json_rows(text: str) -> list[Any]:
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise ValueError(
            f"it holds one {type(rows).__name__}; write an array of texts or objects, or one a line in .jsonl"
        )
    return rows


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> list[Any]:
    import pyarrow as pa  # 0.2 s: only a Parquet file pays for it
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    _check_header(table.column_names, columns)
    return table.to_pylist()


def _csv_rows(text: str, columns: tuple[str, ...], delimiters: str) -> Iterator[dict[str, Any]]:
    """As csv.DictReader, which skips empty lines, but that it refuses a row with cells too many or too few, where a
    piece of the prompt could pass for another cell, and an open quote, which would swallow the rows after it.
    """
    header_line = next(filter(str.strip, io.StringIO(text)), "")
    delimiter = _delimiter(header_line, columns, delimiters)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    number, line = 0, 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            where = f"row {number} (line {line})" if header else "the header"
            raise ValueError(
                f"{where} has a quote that nothing closes, or that text follows ({error}); close it before a "
                f'{_spoken(delimiter)} or the end of the row, and write a quote within quotes twice ("")'
            ) from error
        if cells is None:
            return
        first_line, line = line, reader.line_num + 1
        if not cells:
            continue
        if not header:
            header = cells
            _check_header(header, columns)
            continue
        if len(cells) not in (1, len(header)):  # one alone can stand for nothing but the first column
            whole = ", or say --csv-plain, which takes each line whole" if len(header) == 1 else ""
            raise ValueError(
                f"row {number} (line {first_line}) has {len(cells)} cells and the header {len(header)}; put a text "
                f'with a {_spoken(delimiter)} into "quotes", and leave no cell out{whole}'
            )
        yield dict(zip(header, cells + [None] * (len(header) - len(cells)), strict=False))
        number += 1


def _plain_rows(text: str, columns: tuple[str, ...], _: str) -> Iterator[dict[str, Any]]:
    """Each line whole, but for the quotes of one that is a quoted cell."""
    header, *lines = [line for line in text.splitlines() if line.strip()] or [""]
    names = next(csv.reader([header]), [])
    if header:
        _check_header(names, columns)
    if len(names) > 1:
        named = ", ".join(map(repr, names[:10]))
        raise ValueError(f"--csv-plain is for a CSV of one column; the header has {len(names)}: {named}")
    for line in lines:
        try:
            cells = next(csv.reader([line], strict=True))
        except csv.Error:
            cells = []
        yield {names[0]: cells[0] if len(cells) == 1 else line}


def _delimiter(header_line: str, columns: tuple[str, ...], delimiters: str) -> str:
    """The first delimiter by which the header has a wanted column. Never by the rows: they come and go."""
    for delimiter in delimiters:
        names = next(csv.reader([header_line], delimiter=delimiter), [])
        if any(column_key(name) in columns for name in names):
            return delimiter
    return max(delimiters, key=header_line.count)  # to name the columns it has


def _check_header(names: list[str], columns: tuple[str, ...]) -> None:
    if not names or not any(column_key(name) in columns for name in names):
        raise NoColumn(names)


def _spoken(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}[delimiter]


READERS: dict[str, Callable[[str], list[Any]]] = {".txt": _text_rows, ".jsonl": _jsonl_rows, ".json": _json_rows}
