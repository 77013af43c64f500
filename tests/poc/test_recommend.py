"""What follows from the numbers, and when nothing does."""

from __future__ import annotations

import pytest

from stablerep.poc.compare import Scores
from stablerep.poc.plan import EQUAL_COST, EQUAL_PICTURES, Arm
from stablerep.poc.recommend import Recommendation, compare_all, pairs_of, recommend

ARMS = (
    Arm("pixels", "pixels"),
    Arm("untrained", "untrained"),
    Arm("pretrained-x", "pretrained"),
    Arm("real", "real", EQUAL_PICTURES, "simclr"),
    Arm("real-longer", "real", EQUAL_COST, "simclr"),
    Arm("synthetic", "synthetic", EQUAL_PICTURES, "stablerep"),
    Arm("hybrid-0.5", "hybrid", EQUAL_PICTURES, "stablerep"),
)


def found(photos: int = 10_000, seeds: int = 3, **percent: float) -> Recommendation:
    """The arms' means, each seed a tenth of a point from it; what is not named is far behind."""
    names = {arm.name: percent.get(arm.name.split("-")[0], 40.0) for arm in ARMS}
    names["real-longer"] = percent.get("equal_cost", names["real"])
    offsets = [0.1 * (seed - (seeds - 1) / 2) for seed in range(seeds)]
    scores = {
        name: {"linear_top1": Scores(tuple(mean + each for each in offsets), photos)} for name, mean in names.items()
    }
    comparisons = compare_all(scores, pairs_of(ARMS))
    return recommend(comparisons, ARMS, "hybrid-0.5", seeds, photos)


@pytest.mark.parametrize(
    ("percent", "choice", "reason", "a", "b"),
    [
        ({"synthetic": 80, "real": 70}, "synthetic", "synthetic_ahead", "synthetic", "real"),
        ({"real": 80, "synthetic": 70}, "real", "real_ahead", "real", "synthetic"),
        ({"hybrid": 85, "synthetic": 80, "real": 70}, "hybrid", "hybrid_ahead", "hybrid-0.5", "synthetic"),
        ({"hybrid": 85, "synthetic": 70, "real": 80}, "hybrid", "hybrid_ahead", "hybrid-0.5", "real"),
        ({"pretrained": 95, "hybrid": 85, "synthetic": 80, "real": 70}, "pretrained", "pretrained_ahead",
         "pretrained-x", "hybrid-0.5"),
        # Ahead of real photos at equal pictures, not at equal cost.
        ({"synthetic": 80, "real": 70, "equal_cost": 85}, "real", "real_ahead", "real-longer", "synthetic"),
    ],
)  # fmt: skip
def test_the_best_supported_choice(percent: dict[str, float], choice: str, reason: str, a: str, b: str) -> None:
    recommendation = found(**percent)
    assert (recommendation.choice, recommendation.reason) == (choice, reason)
    assert recommendation.a == a and recommendation.b.startswith(b)
    assert recommendation.difference > recommendation.ci95 > 0


def test_within_a_point_synthetic_pictures_do_as_well() -> None:
    assert found(photos=1_000_000, synthetic=80, real=80).reason == "synthetic_as_good"
    recommendation = found(photos=1_000, synthetic=80, real=80.1)
    assert (recommendation.choice, recommendation.reason) == ("undecided", "no_difference")


def test_few_photos_or_one_seed_decide_nothing_however_large_the_difference() -> None:
    few, one = found(photos=49, synthetic=90, real=50), found(seeds=1, synthetic=90, real=50)
    assert (few.choice, few.reason) == ("undecided", "too_few_photos")
    assert (one.choice, one.reason) == ("undecided", "one_seed")
    assert few.difference == pytest.approx(40)


def test_every_trained_arm_is_compared_with_the_real_ones_by_each_measure() -> None:
    scores = {arm.name: dict.fromkeys(("linear_top1", "knn_top1"), Scores((50.0, 51.0), 100)) for arm in ARMS}
    comparisons = compare_all(scores, pairs_of(ARMS))
    assert {(each.a, each.b) for each in comparisons} >= {
        (a, b) for a in ("synthetic", "hybrid-0.5", "pretrained-x") for b in ("real", "real-longer")
    }
    assert [each.measure for each in comparisons[:2]] == ["linear_top1", "knn_top1"]
    assert {each.verdict for each in comparisons} == {"undecided"}
