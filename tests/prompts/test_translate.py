"""Prompts of other scripts into English: by a real model of random weights, whose English is a few words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stablerep import cli
from stablerep.prompts import translate
from stablerep.prompts.captions import open_model
from tests.prompts.test_captions import save_llm

ROWS = [
    {"Prompt": "赤い靴", "seed": 7},
    {"Prompt": "a bag", "seed": 8},
    {"Prompt": "белая  кошка", "seed": None},
    {"Prompt": "", "seed": 1},
    {"Prompt": "赤い靴", "seed": 9},
]


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    cli.prompts([*argv, "--device", "cpu"])
    return capsys.readouterr().out.strip()


def test_rows_and_columns_stay_and_other_scripts_become_english(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, llm = tmp_path / "p.jsonl", save_llm(tmp_path / "llm")
    source.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))
    argv = ["--translate", str(source), "--llm", str(llm)]
    monkeypatch.setattr(translate, "TRIES", 60)  # random weights seldom end a line
    said = run([*argv, "--out", str(tmp_path / "e.jsonl")], capsys)
    made = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in made] == [7, 8, None, 1, 9]
    assert made[1]["Prompt"] == "a bag" and made[3]["Prompt"] == ""
    assert made[0]["Prompt"] == made[4]["Prompt"] and made[0]["Prompt"].isascii() and made[2]["Prompt"].isascii()
    assert said == f"3 of 5 prompts translated in {tmp_path / 'e.jsonl'}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.jsonl", "llm", "p.jsonl"]  # no journal is left

    # A stopped run goes on: what the first batch wrote is not asked again.
    asked: list[str] = []
    original = translate._translate

    def stop_at_the_second(model, texts, seed):  # type: ignore[no-untyped-def]
        if asked:
            raise KeyboardInterrupt
        asked.extend(texts)
        return original(model, texts, seed)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(translate, "_translate", stop_at_the_second)
        run([*argv, "--out", str(tmp_path / "again.csv"), "--batch-size", "1"], capsys)
    assert len(list(tmp_path.glob("again.csv.*.partial"))) == 1
    monkeypatch.setattr(translate, "_translate", lambda *args: (asked.extend(args[1]), original(*args))[1])
    run([*argv, "--out", str(tmp_path / "again.csv"), "--batch-size", "1"], capsys)
    assert asked == ["赤い靴", "белая кошка"]
    assert (tmp_path / "again.csv").read_text().splitlines()[:3] == ["Prompt,seed", f"{made[0]['Prompt']},7", "a bag,8"]


def test_what_cannot_be_translated_stays_and_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, llm = tmp_path / "p.txt", save_llm(tmp_path / "llm", words=["赤", "靴"])  # knows no English
    source.write_text("赤い靴\na bag\n")
    said = run(["--translate", str(source), "--llm", str(llm), "--out", str(tmp_path / "e.txt")], capsys)
    assert (tmp_path / "e.txt").read_text() == "赤い靴\na bag\n"
    assert "0 of 2 prompts translated" in said and "1 could not be, and stay as they are" in said


def test_the_question_is_a_translators(tmp_path: Path) -> None:
    model = open_model(str(save_llm(tmp_path)), torch.device("cpu"), translate.INSTRUCTION)
    question = model._question("靴", translate.EXAMPLES)
    assert (
        question.startswith(translate.INSTRUCTION) and question.endswith("靴 =>") and "a red shoe on snow" in question
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "give --classes, a text file of classes, or --translate"),
        (["--classes", "c.txt", "--translate", "p.txt"], "one of them"),
        (["--translate", "p.txt"], "--translate p.txt needs --llm"),
        (["--translate", "none.txt", "--llm", "x/y"], "--translate none.txt does not exist"),
    ],
)
def test_mistakes(argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.prompts([*argv, "--out", str(tmp_path / "out.txt")])
    assert stopped.value.code == 2 and says in capsys.readouterr().err
