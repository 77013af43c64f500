from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerep.config import UserError
from stablerep.prompts import read_prompts

TEXTS = ["a photo of a cat", "", 'a "quoted", dog', "Zürich bei Nacht"]


@pytest.fixture(params=["txt", "csv", "jsonl", "parquet"])
def prompts_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"prompts.{request.param}"
    if request.param == "txt":
        path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    elif request.param == "csv":
        lines = ['"' + text.replace('"', '""') + f'",{i}' for i, text in enumerate(TEXTS)]
        path.write_text("caption,n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    elif request.param == "jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    else:
        pq.write_table(pa.table({"n": range(4), "prompt": TEXTS}), path)
    return path


def test_every_format_gives_the_same_prompts(prompts_file: Path) -> None:
    prompts = read_prompts(prompts_file)
    assert [prompt.text for prompt in prompts] == TEXTS
    assert [prompt.id for prompt in prompts] == [0, 1, 2, 3]


@given(st.lists(st.text(st.characters(categories=["L", "N", "P", "Zs"])), min_size=1))
def test_jsonl_keeps_a_row_a_prompt(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in texts), encoding="utf-8")
    if any(text.strip() for text in texts):
        assert len(read_prompts(path)) == len(texts)
    else:
        with pytest.raises(UserError, match="is empty"):
            read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "is empty"),
        ("p.txt", b" \n \n", "is empty"),
        ("p.txt", b"\xff\xfe\x00", "cannot be read"),
        ("p.csv", b"name\ncat\n", "no column prompt"),
        ("p.jsonl", b'{"prompt": ', "cannot be read"),
        ("p.parquet", b"PAR1", "cannot be read"),
        ("p.doc", b"cat", "unknown ending"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_file() -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_prompts(Path("nowhere.txt"))


def test_a_row_without_text_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    rows = ['{"prompt": "a bag"}', '{"prompt": ["a", "coat"]}', '{"name": "x"}', '{"pro', '"\\ud83d"', "7", "null"]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    prompts = read_prompts(tmp_path / "p.jsonl")
    assert [prompt.text for prompt in prompts] == ["a bag", "", "", "", "", "7", ""]
    words = ["", "is no text but a list", "no column prompt", "is no JSON", "a lone surrogate", "", "NoneType"]
    assert [word in prompt.problem for word, prompt in zip(words, prompts, strict=True)] == [True] * 7
    assert [bool(prompt.problem) for prompt in prompts] == [bool(word) for word in words]
