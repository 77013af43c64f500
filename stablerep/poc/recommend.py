"""What follows from the comparisons, and when nothing does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stablerep.poc.compare import Estimate, Scores, difference, verdict
from stablerep.poc.plan import Arm

MEASURE = "linear_top1"  # what the recommendation goes by
FEWEST_TEST_PHOTOS = 50  # below, a percentage is known to 14 points at best
AS_GOOD = 1.0  # points that may be lost for not needing photos


@dataclass(frozen=True)
class Comparison:
    a: str
    b: str
    measure: str
    difference: float  # points
    ci95: float
    p: float
    verdict: str


@dataclass(frozen=True)
class Recommendation:
    choice: str  # synthetic, hybrid, real, pretrained, undecided
    reason: str
    a: str
    b: str
    difference: float
    ci95: float


def pairs_of(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """Which arms are compared: each trained one with what it would replace, and all with real photos."""
    by_kind = {kind: [arm.name for arm in arms if arm.kind == kind] for kind in {arm.kind for arm in arms}}
    real, synthetic = by_kind["real"], by_kind["synthetic"]
    hybrid, others = by_kind.get("hybrid", []), by_kind.get("pretrained", []) + by_kind.get("supervised", [])
    pairs = [(a, b) for a in synthetic for b in real]
    pairs += [(a, b) for a in hybrid for b in (*real, *synthetic)]
    pairs += [(a, b) for a in others for b in (*real, *synthetic, *hybrid)]
    return pairs + [(a, b) for a in (*synthetic, *real) for b in by_kind.get("untrained", [])]


def compare_all(scores: Mapping[str, Mapping[str, Scores]], pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """scores: of each arm by measure."""
    found = []
    for a, b in pairs:
        for measure in scores[a].keys() & scores[b].keys():
            estimate = difference(scores[a][measure], scores[b][measure])
            found.append(_comparison(a, b, measure, estimate))
    return sorted(found, key=lambda each: (pairs.index((each.a, each.b)), each.measure != MEASURE, each.measure))


def _comparison(a: str, b: str, measure: str, estimate: Estimate) -> Comparison:
    return Comparison(a, b, measure, estimate.mean, estimate.ci95, estimate.p, verdict(estimate))


def recommend(
    comparisons: Sequence[Comparison], arms: Sequence[Arm], hybrid: str | None, seeds: int, test_photos: int
) -> Recommendation:
    """The first of these that the data support: pretrained weights, both kinds of pictures, synthetic, or real ones.

    A choice must be ahead of every rival it is said to be ahead of (an intersection-union test, which needs no
    correction for their number); what counts is the rival it is least ahead of.

    Args:
        hybrid: the arm of several ratios that the validation photos chose.
    """
    by_pair = {(each.a, each.b): each for each in comparisons if each.measure == MEASURE}
    of_kind = {kind: [arm.name for arm in arms if arm.kind == kind] for kind in ("real", "pretrained")}
    real, synthetic = of_kind["real"], "synthetic"
    trained = [*real, synthetic, *([hybrid] if hybrid else [])]

    def ahead(a: str, rivals: Sequence[str]) -> Comparison | None:
        """a against the rival it is least ahead of, if it is ahead of all."""
        each = [_seen_from(by_pair, a, b) for b in rivals]
        return min(each, key=lambda one: one.difference) if all(one.verdict == "better" for one in each) else None

    base = min((by_pair[synthetic, b] for b in real), key=lambda one: one.difference)
    if test_photos < FEWEST_TEST_PHOTOS:
        return _because("undecided", "too_few_photos", base)
    if seeds < 2:
        return _because("undecided", "one_seed", base)
    for name in of_kind["pretrained"]:
        if found := ahead(name, trained):
            return _because("pretrained", "pretrained_ahead", found)
    over_real = ahead(synthetic, real)
    if hybrid and (found := ahead(hybrid, real if over_real is None else [*real, synthetic])):
        return _because("hybrid", "hybrid_ahead", found)
    if over_real:
        return _because("synthetic", "synthetic_ahead", over_real)
    if any(by_pair[synthetic, b].verdict == "worse" for b in real):
        return _because("real", "real_ahead", _seen_from(by_pair, base.b, synthetic))
    if base.difference - base.ci95 > -AS_GOOD:
        return _because("synthetic", "synthetic_as_good", base)
    return _because("undecided", "no_difference", base)


def _seen_from(by_pair: Mapping[tuple[str, str], Comparison], a: str, b: str) -> Comparison:
    """The comparison of a with b, whichever way round it was made."""
    if (a, b) in by_pair:
        return by_pair[a, b]
    other = by_pair[b, a]
    turned = {"better": "worse", "worse": "better"}.get(other.verdict, other.verdict)
    return Comparison(a, b, other.measure, -other.difference, other.ci95, other.p, turned)


def _because(choice: str, reason: str, by: Comparison) -> Recommendation:
    return Recommendation(choice, reason, by.a, by.b, by.difference, by.ci95)
