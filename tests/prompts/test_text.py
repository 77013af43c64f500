from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerep.prompts import caption_key, is_outside_latin


@pytest.mark.parametrize(
    "same", ["A red  shoe.", " a\tRED shoe . ", "a red\u3000shoe。", "ａ red shoe...", "a red shoe…"]
)
def test_captions_that_say_the_same_have_one_key(same: str) -> None:
    assert caption_key(same) == "a red shoe"


def test_others_do_not() -> None:
    others = ["a red shoe!", "a red, shoe", "a redshoe", "a réd shoe", ""]
    assert len({caption_key(other) for other in [*others, "a red shoe"]}) == len(others) + 1
    assert caption_key("STRASSE") == caption_key("Straße")


@given(st.text())
def test_the_key_of_a_key_is_itself(text: str) -> None:
    assert caption_key(caption_key(text)) == caption_key(text)


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("暗い色の靴の写真", True),
        ("фото ботинка", True),
        ("靴 (a shoe in dim light)", False),
        ("Ein Stiefel für Zürich, naïve", False),
        ("ａ ｓｈｏｅ", False),
        ("123 !?", False),
        ("", False),
    ],
)
def test_is_outside_latin(text: str, outside: bool) -> None:
    assert is_outside_latin(text) == outside


def test_importing_prompts_is_cheap() -> None:
    program = "import sys, stablerep.prompts; print(*sorted({'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert not subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()
