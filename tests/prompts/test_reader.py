from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.identity import hash_prompts
from stablerep.prompts import Prompt, read_prompts

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
        ("p.csv", b"name; n\ncat;1\n", r"has no column prompt, caption, text; its columns are 'name', ' n': rename"),
        ("p.tsv", b"prompt,n\ncat,1\n", "its columns are 'prompt,n'"),
        ("p.jsonl", b'{"name": "cat"}\n{"n": 1}\n', "its columns are 'name', 'n'"),
        ("p.json", b'{"prompt": ["cat"]}', "it holds one dict; write an array"),
        ("p.json", b'["cat"', "cannot be read"),
        ("p.csv", b"", "is empty"),
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


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_override_the_run_where_they_are_not_empty(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"p.{ending}"
    rows: list[dict] = [
        {"prompt": "a cat", "guidance_scale": 1.5, "negative_prompt": "a  dog", "seed": 2**62 + 1},
        {"prompt": "a cow", "guidance_scale": None, "negative_prompt": None, "seed": None},
        {"prompt": "a fox", "guidance_scale": 0.0, "negative_prompt": " ", "seed": 0},
    ]
    if ending == "csv":
        words = [[str("" if value is None else value) for value in row.values()] for row in rows]
        path.write_text("\n".join(",".join(row) for row in [list(rows[0]), *words]))
    elif ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + '\n"a hen"\n')
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    cat, cow, fox = read_prompts(path)[:3]
    assert cat == Prompt(0, "a cat", guidance_scale=1.5, negative_prompt="a dog", seed=2**62 + 1)
    assert cow == Prompt(1, "a cow")
    assert fox == Prompt(2, "a fox", guidance_scale=0.0, seed=0)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_dash_is_no_negative_prompt_and_an_empty_cell_the_runs(tmp_path: Path, ending: str) -> None:
    cells = ["-", "", "a - b", " - "]
    if ending == "csv":
        lines = [f'a cat,"{cell}"' for cell in cells]
        (tmp_path / "p.csv").write_text("\n".join(["prompt,negative_prompt", *lines]))
    elif ending == "jsonl":
        rows = [{"prompt": "a cat", "negative_prompt": cell} for cell in cells]
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.table({"prompt": ["a cat"] * 4, "negative_prompt": cells}), tmp_path / "p.parquet")
    prompts = read_prompts(tmp_path / f"p.{ending}")
    assert [prompt.negative_prompt for prompt in prompts] == ["", None, "a - b", ""]
    config = GenerateConfig(prompts=tmp_path / "p", out=tmp_path / "out", negative_prompt="blurry")
    used = [config.settings_of(prompt).negative_prompt for prompt in prompts]
    assert used == ["", "blurry", "a - b", ""]
    assert len({hash_prompts([prompt]) for prompt in prompts[:3]}) == 3


def test_gaps_as_pandas_writes_them(tmp_path: Path) -> None:
    nan = float("nan")
    table = pa.table({"prompt": ["a", "b"], "seed": [7.0, nan], "guidance_scale": [nan, 3.0]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == [Prompt(0, "a", seed=7), Prompt(1, "b", guidance_scale=3.0)]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("guidance_scale", "high", "prompt 1: guidance_scale must be .* got 'high'"),
        ("guidance_scale", 101, "prompt 1: guidance_scale"),
        ("guidance_scale", -0.5, "prompt 1: guidance_scale"),
        ("guidance_scale", True, "prompt 1: guidance_scale"),
        ("seed", 1.5, "prompt 1: seed must be a whole number"),
        ("seed", -1, "prompt 1: seed"),
        ("seed", 2**63, "prompt 1: seed"),
        ("seed", 2.0**60, "prompt 1: seed"),
        ("seed", "x", "prompt 1: seed .* got 'x'"),
        ("seed", [1], "prompt 1: seed"),
    ],
)
def test_a_bad_value_names_its_prompt(tmp_path: Path, column: str, value: object, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'"fine"\n{json.dumps({"prompt": "a cat", column: value})}\n')
    with pytest.raises(UserError, match=message):
        read_prompts(path)


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


def spelled(ending: str, names: list[str], rows: list[list[str]]) -> str:
    if ending in ("jsonl", "json"):
        objects = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        return "\n".join(objects) if ending == "jsonl" else f"[{', '.join(objects)}]"
    delimiter = {"csv": ",", "tsv": "\t", "excel": ";"}[ending]
    return "\r\n".join(delimiter.join(row) for row in [names, *rows])


@pytest.mark.parametrize("ending", ["csv", "excel", "tsv", "jsonl", "json"])
def test_columns_are_found_whatever_their_case_and_blanks(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"p.{ending.replace('excel', 'csv')}"
    rows = [["a shoe", "4", "boots"], ["a bag", "5", ""]]
    path.write_text(spelled(ending, [" Prompt", "SEED ", "Class"], rows))
    assert read_prompts(path) == [Prompt(0, "a shoe", seed=4, label="boots"), Prompt(1, "a bag", seed=5, label="")]


def test_a_column_spelled_as_its_name_goes_before_its_likes(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("Prompt,text,TEXT\nno,yes,no\n")
    assert read_prompts(tmp_path / "p.csv") == [Prompt(0, "yes")]


def test_the_delimiter_follows_from_the_header_alone(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na shoe; red; new\na bag\twith a tab\n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.csv")] == ["a shoe; red; new", "a bag with a tab"]
    (tmp_path / "p.csv").write_text("caption;n\na shoe, red, new;1\n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.csv")] == ["a shoe, red, new"]


@pytest.mark.parametrize("names", [["prompt", "label"], ["label", "prompt", "class"], ["concept", "class", "prompt"]])
def test_the_first_column_of_labels_that_is_there(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "p.csv"
    path.write_text(",".join(names) + "\n" + ",".join(f"the {name}" for name in names))
    expected = next(f"the {name}" for name in ("label", "class", "concept") if name in names)
    assert read_prompts(path)[0].label == expected
    path.write_text(",".join(names) + "\n" + ",".join(name if name == "prompt" else " " for name in names))
    assert read_prompts(path)[0].label is None


def test_labels_identify_a_file_where_it_has_some() -> None:
    plain, labelled, other = (Prompt(0, "a", label=label) for label in (None, "x", "y"))
    assert hash_prompts([plain]) == hash_prompts([Prompt(0, "a")]) == "ca978112ca1b"  # as before labels
    assert len({hash_prompts([prompt]) for prompt in (plain, labelled, other)}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "prompt\na bag\na dark shoe, red laces\n",
            r"row 1 \(line 3\) has 2 cells and the header 1; put .*--csv-plain",
        ),
        (
            "prompt,n\na bag,1\na shoe, red,2\n",
            r"row 1 \(line 3\) has 3 cells and the header 2; put a text with a comma",
        ),
        ('prompt\na\n"b\n"c"\nd\n', r"row 1 \(line 3\) has a quote that nothing closes"),
        ('prompt,negative_prompt\n\n"a shoe,b\nc,d\n', r"row 0 \(line 3\) has a quote"),
        (
            'prompt\n"a ""nice"" dog"\n"a "bad" dog"\n',
            r"row 1 \(line 3\) has a quote that nothing closes, or that text",
        ),
        ("prompt,negative_prompt\na shoe, red,\n", r"row 0 \(line 2\) has 3 cells and the header 2"),
        ("prompt,negative_prompt,seed\na shoe, red\n", r"row 0 \(line 2\) has 2 cells and the header 3"),
    ],
)
def test_a_csv_that_would_lose_text_is_refused_by_row(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_prompts(tmp_path / "p.csv")
    assert "\n" not in str(error.value)


def test_cells_may_have_lines_and_rows_the_prompt_alone(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('prompt,n\n"two\nlines",1\nshort\n')
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.csv")] == ["two lines", "short"]


def test_csv_plain_takes_lines_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('Prompt\na dark shoe, red laces\n\n"a bag, blue"\na 5" heel, "new"\n')
    expected = ["a dark shoe, red laces", "a bag, blue", 'a 5" heel, "new"']
    assert [prompt.text for prompt in read_prompts(path, csv_plain=True)] == expected
    path.write_text("prompt,n\na,1\n")
    with pytest.raises(UserError, match="--csv-plain is for a CSV of one column; the header has 2: 'prompt', 'n'"):
        read_prompts(path, csv_plain=True)
    (tmp_path / "p.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"--csv-plain .* leave it out"):
        read_prompts(tmp_path / "p.txt", csv_plain=True)
