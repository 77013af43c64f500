"""Both languages say the same, and no sentence claims more than its interval."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stablerep.report.words import answer, arm_names, language, open_words, verdict_of
from tests.report.poc_folder import poc

FOLDER = language.Path(language.__file__).parent


def leaves(texts: dict[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    for name, value in texts.items():
        yield from leaves(value, f"{at}{name}.") if isinstance(value, dict) else [(at + name, value)]


def test_both_languages_have_the_same_texts_with_the_same_places() -> None:
    english, japanese = (dict(leaves(yaml.safe_load((FOLDER / f"{lang}.yaml").read_text()))) for lang in ("en", "ja"))
    assert list(english) == list(japanese)
    for key, text in english.items():
        places = [{name for _, name, _, _ in string.Formatter().parse(each) if name} for each in (text, japanese[key])]
        assert places[0] == places[1], key
        assert isinstance(text, str) and text.strip(), key
    kana = re.compile("[ぁ-んァ-ヶ一-龠]")
    assert sum(bool(kana.search(text)) for text in japanese.values()) > 0.9 * len(japanese)


AS_GOOD = {"a": "synthetic", "b": "real", "difference": -0.2}
FEW = {"a": "synthetic", "b": "real", "ci95": 4.0}
REASONS = {
    "synthetic_ahead": ({"a": "synthetic", "b": "real"}, "Synthetic pictures are worth it here", "合成画像は有効です"),
    "synthetic_as_good": (AS_GOOD, "can stand in for photos", "代替できます"),
    "hybrid_ahead": ({"a": "hybrid_50", "b": "real"}, "Use both", "併用を推奨"),
    "real_ahead": ({"a": "real", "b": "synthetic"}, "Stay with real photos", "実写真の継続"),
    "pretrained_ahead": ({"a": "pretrained", "b": "synthetic"}, "Take the pretrained encoder", "事前学習済み"),
    "no_difference": ({"a": "synthetic", "b": "real", "difference": 0.3}, "do not support a choice", "判断できません"),
    "too_few_photos": (FEW, "2,000 test photos are too few", "テスト写真 2,000 枚では"),
    "one_seed": ({"a": "synthetic", "b": "real", "ci95": None}, "do not support a choice yet", "各 1 シードのみ"),
}  # fmt: skip


@pytest.mark.parametrize("reason", list(REASONS))
def test_each_reason_has_its_sentence(reason: str) -> None:
    told, english, japanese = REASONS[reason]
    asked = poc(reason=reason, **told)
    assert english in answer(asked) and japanese in answer(asked, "ja")
    assert answer(asked) == answer(asked, "en")


def test_the_numbers_are_those_of_the_run() -> None:
    assert answer(poc()) == (
        "Synthetic pictures are worth it here: an encoder trained on 4,000 synthetic pictures alone is "
        "1.9\u00a0±\u00a00.7 points ahead of one trained on 4,000 real photos."
    )
    loss = poc(reason="synthetic_as_good", difference=-0.4, ci95=0.5)
    assert "(−0.4\u00a0±\u00a00.5 points)" in answer(loss) and verdict_of(loss).worst == pytest.approx(0.9)


@given(
    st.sampled_from(["synthetic_ahead", "hybrid_ahead", "real_ahead", "pretrained_ahead", "synthetic_as_good"]),
    st.floats(-9, 9),
    st.one_of(st.none(), st.floats(0.01, 9)),
)
def test_no_lead_is_claimed_within_its_interval(reason: str, difference: float, ci95: float | None) -> None:
    """Whatever poc.json says: not ahead unless the interval leaves out zero, and the one ahead is the one that is."""
    asked = poc(reason=reason, difference=difference, ci95=ci95)
    verdict = verdict_of(asked)
    assert verdict.first is not None and verdict.second is not None
    if verdict.reason.endswith("_ahead"):
        assert ci95 is None or abs(difference) > ci95
        assert verdict.lead >= 0 and verdict.first["name"] == ("synthetic" if difference >= 0 else "real")
        assert verdict.reason == ("synthetic_ahead" if difference >= 0 else "real_ahead")
    if verdict.confidence in ("high", "moderate"):
        assert ci95 is not None
    if verdict.confidence == "high" and verdict.reason.endswith("_ahead"):
        assert ci95 is not None and verdict.lead >= 2 * ci95
    assert answer(asked, "ja") and answer(asked)


def test_confidence_asks_for_seeds() -> None:
    assert verdict_of(poc()).confidence == "high"
    assert verdict_of(poc(ci95=1.5)).confidence == "moderate"
    assert verdict_of(poc(difference=0.3)).confidence == "undecided"
    once = poc()
    for arm in once["arms"]:
        arm["seeds"] = arm["seeds"][:1]
    assert verdict_of(once).confidence == "low"
    once["recommendation"]["ci95"] = None
    assert verdict_of(once).reason == "one_seed"
    wide = poc(reason="synthetic_as_good", difference=0.1, ci95=5.0)
    assert verdict_of(wide).confidence == "low"


def test_a_recommendation_of_arms_that_are_not_there_says_so() -> None:
    assert "no recommendation" in answer(poc(a="nobody"))


def test_arms_that_read_alike_are_told_apart() -> None:
    asked = poc()
    asked["arms"].append(asked["arms"][5] | {"name": "synthetic_b"})
    names = arm_names(asked["arms"], open_words("en"))
    assert names["synthetic"] == "Synthetic only (synthetic)" and names["synthetic_b"] == "Synthetic only (synthetic_b)"
    assert names["hybrid_25"] == "Hybrid, 25 % real" and names["pretrained"] == "Pretrained resnet50.a1_in1k"


def test_numbers_are_written_for_readers() -> None:
    words, ja = open_words("en"), open_words("ja")
    assert [words.usd(value) for value in (0.0023, 0, 3.934, 12345.6)] == ["$0.0023", "$0.00", "$3.93", "$12,346"]
    assert ja.usd(12.4) == "12.40 ドル"
    assert [words.seconds(value) for value in (41, 510, 11520, 1e6)] == ["41 s", "8.5 min", "3.2 h", "11.6 days"]
    assert words.signed(-0.44) == "−0.4" and words.fixed(None) == "–" and words.whole(12345) == "12,345"
