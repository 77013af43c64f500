"""The recommendation of a proof of concept in one sentence that claims no more than its interval does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stablerep.report.words.language import Words, open_words
from stablerep.report.words.names import in_a_sentence

AHEAD, AS_GOOD = "_ahead", "synthetic_as_good"
LEADERS = {
    "synthetic": "synthetic_ahead", "hybrid": "hybrid_ahead", "real": "real_ahead", "supervised": "real_ahead",
    "pretrained": "pretrained_ahead",
}  # fmt: skip
UNDECIDED = ("no_difference", "too_few_photos", "one_seed", "none")
MANY_SEEDS = 3  # below, an interval over seeds is a guess
WIDE_LEAD = 2  # intervals that a difference of high confidence is worth
SMALL_LOSS = 1.0  # points that an encoder "as good as" another may lose at worst, for high confidence; low above twice


@dataclass(frozen=True)
class Verdict:
    """What may be said of the recommendation."""

    reason: str
    """poc.json's, or what is left of it: a lead within its interval is no lead."""
    confidence: str  # high, moderate, low, undecided
    first: Mapping[str, Any] | None  # the arm ahead, and the other
    second: Mapping[str, Any] | None
    measure: str
    lead: float  # points of first over second; of "as good as", may be negative
    ci95: float | None

    @property
    def worst(self) -> float:
        """Points that the first may lose at worst."""
        return max(0.0, (self.ci95 or 0.0) - self.lead)


def answer(poc: Mapping[str, Any], lang: str = "en") -> str:
    """The answer of poc.json in a sentence of `en` or `ja`."""
    return sentence(poc, verdict_of(poc), open_words(lang))


def sentence(poc: Mapping[str, Any], verdict: Verdict, words: Words) -> str:
    first, second = verdict.first, verdict.second
    if first is None or second is None:
        return words("answer.none")
    lead = verdict.lead
    shown = words.signed(lead) if verdict.reason == AS_GOOD else words.fixed(abs(lead))
    known = verdict.ci95 is not None
    gap = words("number.gap", d=shown, ci=words.fixed(verdict.ci95)) if known else words("number.gap_alone", d=shown)
    return words(
        f"answer.{verdict.reason}",
        first=in_a_sentence(first, "first", words),
        second=in_a_sentence(second, "second", words),
        gap=gap,
        test=words.whole(poc["data"]["test"]),
    )


def verdict_of(poc: Mapping[str, Any]) -> Verdict:
    """Read the recommendation, and take back what its own numbers do not carry."""
    told = poc.get("recommendation") or {}
    arms = {arm["name"]: arm for arm in poc["arms"]}
    first, second = arms.get(told.get("a")), arms.get(told.get("b"))
    if first is None or second is None:
        return Verdict("none", "undecided", None, None, "linear_top1", 0.0, None)
    reason, lead, ci95 = told["reason"], float(told["difference"]), told.get("ci95")
    if reason.endswith(AHEAD):
        if ci95 is not None and abs(lead) <= ci95:
            reason = "no_difference"
        elif ci95 is None and _fewest_seeds(first, second) == 1:
            reason = "one_seed"
    if reason == AS_GOOD:
        if second["kind"] == "synthetic":
            first, second, lead = second, first, -lead
        if ci95 is not None and abs(lead) > ci95:
            reason = f"{first['kind']}{AHEAD}"
    if reason != AS_GOOD and lead < 0:
        first, second, lead = second, first, -lead
    if reason.endswith(AHEAD):  # the one that leads, whichever was named
        reason = LEADERS.get(first["kind"], reason)
    measure = _measure(poc, told)
    return Verdict(reason, _confidence(reason, lead, ci95, first, second), first, second, measure, lead, ci95)


def _confidence(
    reason: str, lead: float, ci95: float | None, first: Mapping[str, Any], second: Mapping[str, Any]
) -> str:
    if reason in UNDECIDED:
        return "undecided"
    seeds = _fewest_seeds(first, second)
    if ci95 is None or seeds == 1 or (reason == AS_GOOD and ci95 - lead > 2 * SMALL_LOSS):
        return "low"
    sure = ci95 - lead <= SMALL_LOSS if reason == AS_GOOD else lead >= WIDE_LEAD * ci95
    return "high" if sure and seeds >= MANY_SEEDS else "moderate"


def _fewest_seeds(*arms: Mapping[str, Any]) -> int:
    """Of the arms that were trained; a frozen one has nothing that another seed would change."""
    return min((len(arm["seeds"]) for arm in arms if is_trained(arm)), default=MANY_SEEDS)


def is_trained(arm: Mapping[str, Any]) -> bool:
    return any(seed.get("train") for seed in arm["seeds"])


def _measure(poc: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """The measure that the recommendation went by: that of the comparison with its numbers."""
    pair = {told["a"], told["b"]}
    for each in poc.get("comparisons") or ():
        if {each["a"], each["b"]} == pair and abs(abs(each["difference"]) - abs(told["difference"])) < 1e-6:
            return each["measure"]
    return "linear_top1"
