from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from examples.fashion.captions import all_captions
from stablerep import cli
from stablerep.config import UserError
from stablerep.data.labelled import FASHION_MNIST_CLASSES
from stablerep.generate.pipeline import default_generator
from stablerep.prompts import read_prompts, writer
from stablerep.prompts.grammar import BUILT_IN, Grammar, read_grammar, with_article
from stablerep.prompts.writer import make_prompts, read_classes

CLASSES = ["ankle boot", "bag", "zebra"]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text("ankle boot\n\n  bag \nzebra\nbag\n")
    return path


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    cli.prompts(argv)
    return capsys.readouterr().out.strip()


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.prompts(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip()


def test_a_class_list_becomes_prompts(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--classes", str(classes), "--num-prompts", "300", "--out"]
    line = run([*argv, str(tmp_path / "new/p.jsonl")], capsys)
    assert line == f"300 prompts of 3 classes in {tmp_path / 'new/p.jsonl'}"
    rows = [json.loads(line) for line in (tmp_path / "new/p.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == 300
    assert Counter(row["class"] for row in rows) == dict.fromkeys(CLASSES, 100)
    assert sorted(Counter(row["template"] for row in rows).values()) == [99, 99, 102]
    assert all(row["class"] in row["prompt"] and "{" not in row["prompt"] for row in rows)
    texts = [row["prompt"] for row in rows]
    for ending in ("txt", "csv"):  # what the generator reads
        run([*argv, str(tmp_path / f"p.{ending}")], capsys)
        assert [prompt.text for prompt in read_prompts(tmp_path / f"p.{ending}")] == texts


def test_the_seed_decides_and_more_begin_with_the_same() -> None:
    grammars = [read_grammar(name) for name in BUILT_IN]
    few = list(islice(make_prompts(CLASSES, grammars, 0), 50))
    assert list(islice(make_prompts(CLASSES, grammars, 0), 400))[:50] == few
    assert list(islice(make_prompts(CLASSES, grammars, 1), 50)) != few
    # Another class changes nothing for the others.
    of_bag = [each for each in islice(make_prompts([*CLASSES, "hat"], grammars, 0), 60) if each.concept == "bag"]
    assert of_bag == [each for each in islice(make_prompts(CLASSES, grammars, 0), 45) if each.concept == "bag"]


words = st.lists(
    st.sampled_from(["x", "y", "z w", "{inner}", "{a inner} {inner}", "{concept}"]), min_size=1, max_size=4
)


@given(st.lists(words, min_size=1, max_size=3), st.integers(0, 9))
def test_every_number_is_a_text_and_all_are_drawn_once(lists: list[list[str]], seed: int) -> None:
    wildcards = {f"w{number}": tuple(dict.fromkeys(each)) for number, each in enumerate(lists)}
    template = "{concept} " + " / ".join(f"{{{name}}}" for name in wildcards)
    grammar = Grammar("g", (template, "{concept}"), wildcards | {"inner": ("i", "o")})
    texts = {grammar.text(number, "hat") for number in range(grammar.num_texts)}
    assert len(texts) == expansions(grammar, "hat")
    drawn = [each.prompt for each in make_prompts(["hat"], [grammar], seed)]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == texts


def expansions(grammar: Grammar, concept: str) -> int:
    """How many different texts, by writing each out."""
    open_texts, texts = list(grammar.templates), set()
    while open_texts:
        text = open_texts.pop()
        start = text.find("{")
        if start < 0:
            texts.add(" ".join(text.split()))
            continue
        end = text.index("}")
        name = text[start + 1 : end]
        bare = name.removeprefix("a ")
        for word in (concept,) if bare == "concept" else grammar.wildcards[bare]:
            assert not (name != bare and "{" in word)
            filled = with_article(word) if name != bare else word
            open_texts.append(text[:start] + filled + text[end + 1 :])
    return len(texts)


def test_drawing_from_many_gives_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = Grammar("g", ("{concept} {n}",), {"n": tuple(map(str, range(40)))})
    monkeypatch.setattr(writer, "SHUFFLED", 8)
    drawn = [each.prompt for each in make_prompts(["hat"], [grammar], 0)]
    assert sorted(drawn) == sorted(f"hat {n}" for n in range(40))
    assert drawn != sorted(drawn)


def test_more_than_there_are_says_how_many(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"templates": ["{concept} {n}"], "wildcards": {"n": [1, 2]}}))
    out = tmp_path / "p.txt"
    argv = ["--classes", str(classes), "--template", str(tmp_path / "mine.yaml"), "--out", str(out), "--num-prompts"]
    assert "--num-prompts 7 is more than the 6 different prompts" in refused([*argv, "7"], capsys)
    assert not out.exists()
    run([*argv, "6"], capsys)
    assert sorted(out.read_text().splitlines()) == sorted(f"{name} {n}" for name in CLASSES for n in (1, 2))


def test_articles() -> None:
    words_with = [
        with_article(each) for each in ("boot", "ankle boot", "unicycle", "hour glass", "umbrella", "one-way sign")
    ]
    assert words_with == ["a boot", "an ankle boot", "a unicycle", "an hour glass", "an umbrella", "a one-way sign"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates_have_enough_to_say(name: str) -> None:
    grammar = read_grammar(name)
    texts = {grammar.text(number, "hat") for number in range(grammar.num_texts)}
    assert len(texts) == grammar.num_texts > (200 if name == "concept_look" else 800)
    named = "hat" if name == "concept_look" else with_article("hat")  # its article stands before the adjectives
    assert all(named in text for text in texts)
    assert len(grammar.examples) >= 3
    for text, caption in grammar.examples:  # no line breaks, as in what is asked for
        assert text.isprintable() and caption.isprintable()


def test_concept_look_is_what_the_embedded_model_knows() -> None:
    grammar = read_grammar("concept_look")
    texts = [grammar.text(number, name) for name in FASHION_MNIST_CLASSES for number in range(grammar.num_texts)]
    assert {str(caption) for caption in all_captions(FASHION_MNIST_CLASSES)} <= {*texts}
    tokenizer = CLIPTokenizer.from_pretrained(default_generator() / "tokenizer", local_files_only=True)
    assert max(map(len, tokenizer(texts).input_ids)) <= 12  # and it takes 24


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: [", "cannot be read"),
        ("templates: ['{concept}']\nexamples: [a]", "examples must be a mapping of a text to a caption"),
        ("[1]", "must hold `templates:`"),
        ("templates: [a hat]", "has no {concept}"),
        ("templates: []", "templates must be a list of at least one text"),
        ("templates: ['{concept} {place}']\nwildcards: {plaec: [x]}", "did you mean plaec"),
        ("templates: ['{concept}']\nwildcards: {n: []}", "wildcard n must be a list"),
        ("templates: ['{concept}']\nwildcards: [n]", "wildcards must be a mapping"),
        ("templates: ['{concept} {n}']\nwildcards: {n: ['{m}'], m: ['{n}']}", "in a circle: n > m > n"),
        ("templates: ['{concept} }']", "a brace without its other half"),
        ("templates: ['{concept}']\nwildcards: {concept: [x]}", "the wildcard concept is the class itself"),
    ],
)
def test_bad_templates_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_grammar(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_user_mistypes(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--classes", str(classes), "--out", str(tmp_path / "p.txt")]
    assert "did you mean concept_background" in refused([*argv, "--template", "concept_backgroud"], capsys)
    assert "--out p.doc: unknown ending" in refused([*argv[:2], "--out", "p.doc"], capsys)
    assert "--num-prompts must be at least 1" in refused([*argv, "--num-prompts", "0"], capsys)
    (tmp_path / "empty.txt").write_text("\n")
    for path, message in ((tmp_path / "none.txt", "does not exist"), (tmp_path / "empty.txt", "is empty")):
        with pytest.raises(UserError, match=message):
            read_classes(path)
