"""Captions by a language model: what it says, when it is taken, and that a stopped run goes on.

The models are real and their weights random: they speak gibberish of the words they have.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from stablerep import cli
from stablerep.prompts import captions

WORDS = ["bag", "hat", "zebra", "a", "on", "in", "red", "old", "table", "snow", "\n"]
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [end] {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def save_llm(folder: Path, words: list[str] = WORDS, kind: str = "llama", chat: str | None = None) -> Path:
    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["<unk>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##")  # words with spaces between them
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    fast.chat_template = chat
    fast.save_pretrained(folder)
    size = {"vocab_size": len(vocabulary), "bos_token_id": None, "eos_token_id": 1}
    model: torch.nn.Module
    if kind == "llama":
        layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**layers, **size))
    else:
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=512, **size))
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    (tmp_path / "classes.txt").write_text("bag\nhat\nzebra\n")
    return ["--classes", str(tmp_path / "classes.txt"), "--num-prompts", "24", "--device", "cpu"]


def run(argv: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    cli.prompts([*argv, "--out", str(out)])
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize(("kind", "chat"), [("llama", None), ("llama", CHAT), ("gpt2", None)])
def test_captions_are_lines_of_their_class(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, chat: str | None
) -> None:
    run(argv, tmp_path / "templates.jsonl", capsys)
    argv += ["--llm", str(save_llm(tmp_path / "llm", kind=kind, chat=chat))]
    line = run(argv, tmp_path / "p.jsonl", capsys)
    before, after = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("templates.jsonl", "p.jsonl")
    )
    assert [(row["class"], row["template"]) for row in after] == [(row["class"], row["template"]) for row in before]
    texts = [row["prompt"] for row in after]
    assert len(set(texts)) == 24
    assert all(row["class"] in row["prompt"] and row["prompt"].isprintable() for row in after)
    own = sum(row["prompt"] == given["prompt"] for row, given in zip(after, before, strict=True))
    assert 0 < own < 18  # gibberish names the class often enough, not always
    assert f"; {own} are the template's own, where --llm gave nothing better: " in line
    others = [text for text, given in zip(texts, before, strict=True) if text != given["prompt"]]
    assert all({*text.split()} <= {*WORDS} for text in others)

    run(argv, tmp_path / "again.jsonl", capsys)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "p.jsonl").read_bytes()
    run([*argv, "--seed", "1"], tmp_path / "other.jsonl", capsys)
    assert (tmp_path / "other.jsonl").read_bytes() != (tmp_path / "p.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_a_stopped_run_goes_on(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv += ["--llm", str(save_llm(tmp_path / "llm")), "--batch-size", "4"]
    run(argv, tmp_path / "whole.txt", capsys)
    answers = captions.CaptionModel.answers
    asked: list[int] = []

    def stopped_in_the_third_batch(self: captions.CaptionModel, questions, seed: int, attempt: int):
        asked.append(attempt)
        if asked.count(0) == 3:
            raise KeyboardInterrupt
        return answers(self, questions, seed, attempt)

    monkeypatch.setattr(captions.CaptionModel, "answers", stopped_in_the_third_batch)
    out = tmp_path / "p.txt"
    with pytest.raises(SystemExit) as stop:
        run(argv, out, capsys)
    assert stop.value.code == 130 and not out.exists()
    (journal,) = tmp_path.glob("p.txt.*.partial")
    journal.write_text(journal.read_text() + '[["half a cap')  # killed while it wrote

    asked[:] = [0] * 3  # no more stops: counts go up from here
    run(argv, out, capsys)
    assert asked.count(0) == 3 + 24 // 4 - 2  # two batches were there
    assert out.read_bytes() == (tmp_path / "whole.txt").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_of_no_use_stays_the_templates(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(argv, tmp_path / "templates.txt", capsys)
    for words, why in ((["oh"] + [f"w{number}" for number in range(3000)], "too long"), (["\n"], "no caption")):
        folder = save_llm(tmp_path / why.replace(" ", "_"), words)
        line = run([*argv, "--llm", str(folder)], tmp_path / "p.txt", capsys)
        assert line.startswith("24 prompts of 3 classes in") and "24 are the template's own" in line and why in line
        assert (tmp_path / "p.txt").read_bytes() == (tmp_path / "templates.txt").read_bytes()


def test_out_of_memory_names_the_batch(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(captions.CaptionModel, "answers", full)
    with pytest.raises(SystemExit) as stop:
        run([*argv, "--llm", str(save_llm(tmp_path / "llm"))], tmp_path / "p.txt", capsys)
    assert stop.value.code == 2
    assert "--batch-size 16 does not fit into the memory of cpu; give a smaller one" in capsys.readouterr().err


def test_folders_that_are_no_language_model(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    pickled = save_llm(tmp_path / "pickled")
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    endless = save_llm(tmp_path / "endless")
    content = json.loads((endless / "tokenizer_config.json").read_text())
    del content["eos_token"]
    (endless / "tokenizer_config.json").write_text(json.dumps(content))
    for folder, message in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "cannot be opened (AutoTokenizer)"),
        (pickled, "cannot be opened (AutoModelForCausalLM)"),
        (endless, "its tokenizer has no eos_token"),
    ):
        with pytest.raises(SystemExit) as stop:
            run([*argv, "--llm", str(folder)], tmp_path / "p.txt", capsys)
        assert stop.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith(f"stablerep-prompts: --llm {folder}") and message in last
    assert not (tmp_path / "p.txt").exists()


def test_an_answer_does_not_depend_on_the_others_of_its_batch(tmp_path: Path) -> None:
    model = captions.open_model(str(save_llm(tmp_path, chat=CHAT)), torch.device("cpu"))
    examples = [[("a photo of a cat", "A cat.")], []]  # questions of different lengths: padding must not matter
    asked = [(f"a photo of a bag {number}", examples[number % 2]) for number in range(9)]
    together = model.answers(asked, seed=3, attempt=0)
    assert together == [answer for each in asked for answer in model.answers([each], seed=3, attempt=0)]
    assert len({*together}) > 5
    assert model.answers(asked, seed=3, attempt=1) != together != model.answers(asked, seed=4, attempt=0)


def test_questions_in_turns_and_in_lines(tmp_path: Path) -> None:
    examples = [("a photo of a cat", "A cat."), ("a photo of a cow", "A cow.")]
    plain = captions.open_model(str(save_llm(tmp_path / "plain")), torch.device("cpu"))
    asked = plain._question("a photo of a bag", examples)
    assert asked.endswith("\n\na photo of a cat => A cat.\na photo of a cow => A cow.\na photo of a bag =>")
    chat = captions.open_model(str(save_llm(tmp_path / "chat", chat=CHAT)), torch.device("cpu"))
    asked = chat._question("a photo of a bag", examples)
    assert asked.startswith(f"[user] {captions.INSTRUCTION}\n\na photo of a cat [end] [assistant] A cat. [end] [user] ")
    assert asked.endswith("[user] a photo of a bag [end] [assistant]")
    assert chat._question("a photo of a bag", []).count("[user]") == 1


@pytest.mark.parametrize("seed", range(4))
def test_draws_follow_the_nucleus(seed: int) -> None:
    """transformers' own warpers are the oracle of the distribution."""
    scores = torch.randn(1, 50, generator=torch.Generator().manual_seed(seed)) * 3
    warped = TopPLogitsWarper(captions.TOP_P)(None, TemperatureLogitsWarper(captions.TEMPERATURE)(None, scores))
    draws = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = captions._Nucleus(draws[:, None], start=3)(torch.zeros(20_000, 3), scores.expand(20_000, -1))
    assert (drawn > -torch.inf).sum(1).eq(1).all()
    frequency = torch.bincount(drawn.argmax(1), minlength=50) / 20_000
    torch.testing.assert_close(frequency, torch.softmax(warped, 1)[0], atol=2e-4, rtol=0)


def test_the_ends_of_the_draw() -> None:
    scores = torch.tensor([[0.0, 5.0, 1.0, -torch.inf]]).expand(2, -1)
    drawn = captions._Nucleus(torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64), start=0)(
        torch.zeros(2, 0), scores
    )
    assert drawn.argmax(1).tolist()[0] == 1
    assert drawn.argmax(1).tolist()[1] in (1, 2)


@given(st.text(st.characters() | st.sampled_from("\r\n\v\f\x1c\x85\u2028\u2029 \t\"'")))
def test_a_line_is_one_line(text: str) -> None:
    line = captions._first_line(text)
    assert len(line.splitlines()) <= 1 and line == line.strip()
    if not captions.why_unfit(line, "", ()):
        assert line and line.isprintable()


@pytest.mark.parametrize(
    ("caption", "why"),
    [
        ("A bag on a table.", ""),
        ("Two BAGS on a table.", ""),
        (None, "too long"),
        ("bag " * 41, "too long"),
        ("", "no caption"),
        ("Here is the caption of a bag:", "no caption"),
        ("<think> a bag", "no caption"),
        ("a bag \ufffd", "no caption"),
        ("a bag\x00", "no caption"),
        ("A hat on a table.", "without the class"),
        ("a red bag", "repeated"),
    ],
)
def test_what_can_be_a_prompt(caption: str | None, why: str) -> None:
    assert captions.why_unfit(caption, "bag", {"a red bag"}) == why
