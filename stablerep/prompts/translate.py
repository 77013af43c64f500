"""A local language model translates those prompts of a file that are not in Latin script into English.

Text encoders such as CLIP's know English alone. Rows, their order and their other columns stay: a prompt's id, and with
it its noise, is its row. Translations are kept in a journal batch by batch, so that a stopped run goes on.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stablerep import atomic, distributed, hub
from stablerep.config import UserError, fingerprint
from stablerep.prompts.captions import FLAG, TRIES, CaptionModel, open_model, why_unfit
from stablerep.prompts.config import PromptsConfig
from stablerep.prompts.encoding import EncodingError
from stablerep.prompts.reader import COLUMNS
from stablerep.prompts.table import NoColumn, column_key, read_rows
from stablerep.prompts.text import is_outside_latin
from stablerep.runlog import progress

INSTRUCTION = (
    "Translate each description of a picture into English, in at most 40 words. Answer with the translation alone, on "
    "one line."
)
EXAMPLES = (("雪の上の赤い靴", "a red shoe on snow"), ("белая кошка на столе", "a white cat on a table"))


def translate_prompts(config: PromptsConfig) -> str:
    """Write config.translate with English in the place of other scripts; returns a line on what was done.

    Raises:
        UserError: a file that cannot be read, or no such model.
    """
    assert config.translate is not None and config.llm is not None
    path, out = Path(config.translate), Path(config.out)
    rows = _read(path)
    texts = [_text(row) for row in rows]
    foreign = list(dict.fromkeys(text for text in texts if is_outside_latin(text)))
    weights = hub.hash_folder(hub.model_folder(FLAG, config.llm)) if foreign else ""
    made_of = fingerprint([weights, config.seed, foreign, INSTRUCTION, EXAMPLES])
    journal = out.with_name(f"{out.name}.{made_of}.partial")
    english = _read_journal(journal)
    if len(english) < len(foreign):
        with (
            distributed.start(config.device) as device,
            progress("translations", len(foreign), "prompts", start=len(english)) as bar,
            journal.open("a") as file,
        ):
            model = open_model(config.llm, device, INSTRUCTION)
            while len(english) < len(foreign):
                batch = foreign[len(english) : len(english) + config.batch_size]
                made = _translate(model, batch, config.seed)
                file.write("".join(json.dumps(each) + "\n" for each in made.items()))
                file.flush()
                english |= made
                bar.update(len(english))
    atomic.write(out, _lines(rows, texts, english, out.suffix.lower()))
    journal.unlink(missing_ok=True)
    translated = sum(bool(english.get(text)) for text in texts)
    left = sum(text in english and not english[text] for text in texts)
    stay = f"; {left} could not be, and stay as they are" if left else ""
    return f"{translated} of {len(texts)} prompts translated in {out}{stay}"


def _translate(model: CaptionModel, texts: Sequence[str], seed: int) -> dict[str, str]:
    """Each text in English; "" where no answer was of use."""
    english = dict.fromkeys(texts, "")
    for attempt in range(TRIES):
        left = [text for text in texts if not english[text]]
        if not left:
            break
        for text, answer in zip(left, model.answers([(text, EXAMPLES) for text in left], seed, attempt), strict=True):
            if answer and not why_unfit(answer, "", ()) and not is_outside_latin(answer):
                english[text] = answer
    return english


def _read(path: Path) -> list[Any]:
    try:
        rows = read_rows(path, COLUMNS)
    except NoColumn as error:
        found = ", ".join(error.columns)
        raise UserError(f"--translate {path} has no column {', '.join(COLUMNS)}; its columns are {found}") from error
    except FileNotFoundError as error:
        raise UserError(f"--translate {path} does not exist") from error
    except (OSError, ValueError) as error:
        mend = f"; it is probably {error.likely}: save it as UTF-8" if isinstance(error, EncodingError) else ""
        raise UserError(f"--translate {path} cannot be read: {' '.join(str(error).split())[:200]}{mend}") from error
    if bad := next((number for number, row in enumerate(rows) if isinstance(row, ValueError)), None):
        raise UserError(f"--translate {path}: row {bad} is no JSON; mend it, or take it out")
    return rows


def _column(row: Mapping[str, Any]) -> str:
    """The row's own name of the column that holds its prompt."""
    return next(name for wanted in COLUMNS for name in row if column_key(name) == wanted)


def _text(row: Any) -> str:
    value = row[_column(row)] if isinstance(row, dict) else row
    return " ".join(str(value or "").split())


def _lines(rows: Sequence[Any], texts: Sequence[str], english: Mapping[str, str], ending: str) -> str:
    new = [english.get(text) or text for text in texts]
    if ending == ".txt":
        return "".join(f"{text}\n" for text in new)
    tables = [
        row | {_column(row): text} if isinstance(row, dict) else {"prompt": text}
        for row, text in zip(rows, new, strict=True)
    ]
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in tables)
    written = io.StringIO()
    writer = csv.DictWriter(written, list(dict.fromkeys(name for row in tables for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(tables)
    return written.getvalue()


def _read_journal(journal: Path) -> dict[str, str]:
    """What an earlier call wrote; a line that it was stopped in is taken away."""
    if not journal.exists():
        return {}
    text = journal.read_text()
    whole = text[: text.rfind("\n") + 1]
    atomic.write(journal, whole)
    return dict(json.loads(line) for line in whole.splitlines())
