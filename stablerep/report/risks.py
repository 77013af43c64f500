"""What may go wrong with a choice, each with what was found: fine, to look at, to act on, or not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stablerep.report.config import ReportConfig
from stablerep.report.evidence import Evidence
from stablerep.report.words import Words, arm_names
from stablerep.report.words.answer import is_trained

OK, WATCH, ACT, UNKNOWN = "ok", "watch", "act", "unknown"
EVEN, SKEWED = 1.5, 5.0  # largest class to smallest: up to which classes are even, from which it is to be acted on
MANY_DUPLICATES = 0.1  # of the painted pictures
MANY_MEMORISED = 0.01


@dataclass(frozen=True)
class Risk:
    name: str
    level: str  # ok, watch, act, unknown
    finding: str


@dataclass(frozen=True)
class PaintedCounts:
    """What the painted folders say of themselves."""

    images: int
    reasons: Mapping[str, int]  # why pictures were flagged or rejected
    photos: Mapping[str, int]  # training photos by class, from split.csv


def risks_of(evidence: Evidence, config: ReportConfig, counts: PaintedCounts, words: Words) -> list[Risk]:
    """Seven kinds of risk in words, in the order shown."""
    found = [
        ("memorised", _memorised(evidence.quality, words)),
        ("duplicates", _duplicates(evidence.poc["risks"], counts, words)),
        ("imbalance", _imbalance(counts.photos, words)),
        ("flagged", _flagged(evidence.poc["risks"], counts, words)),
        ("damaged", _damaged(evidence, words)),
        ("generator", _licence(config.generator_licence, words)),
        ("prompts", _licence(config.prompts_licence, words)),
        ("seeds", _seeds(evidence.poc["arms"], words)),
    ]
    return [Risk(words(f"risk.{name}"), level, finding) for name, (level, finding) in found]


def _memorised(quality: Mapping[str, Any] | None, words: Words) -> tuple[str, str]:
    memorised = (quality or {}).get("memorised")
    if not memorised:
        return UNKNOWN, words("risk.not_measured")
    if not memorised["count"]:
        n, threshold = words.whole(quality["synthetic_images"]), words.fixed(memorised["threshold"], 2)  # type: ignore[index]
        return OK, words("risk.memorised_none", n=n, threshold=threshold)
    share = memorised["share"]
    told = words("risk.memorised_some", n=words.whole(memorised["count"]), share=words.short(100 * share))
    return ACT if share >= MANY_MEMORISED else WATCH, told


def _duplicates(risks: Mapping[str, Any], counts: PaintedCounts, words: Words) -> tuple[str, str]:
    number = risks.get("duplicates", counts.reasons.get("duplicate") if counts.images else None)
    if number is None:
        return UNKNOWN, words("risk.not_measured")
    if not number:
        return OK, words("risk.duplicates_none")
    many = counts.images and number > MANY_DUPLICATES * counts.images
    return ACT if many else WATCH, words("risk.duplicates_some", n=words.whole(number))


def _imbalance(photos: Mapping[str, int], words: Words) -> tuple[str, str]:
    if not photos:
        return UNKNOWN, words("risk.not_measured")
    least, most = min(photos, key=photos.__getitem__), max(photos, key=photos.__getitem__)
    few, many = photos[least], photos[most]
    ratio = many / max(few, 1)
    if ratio <= EVEN:
        return OK, words("risk.imbalance_none", few=words.whole(few), many=words.whole(many))
    numbers = {"many": words.whole(many), "few": words.whole(few), "ratio": words.short(ratio)}
    return ACT if ratio >= SKEWED else WATCH, words("risk.imbalance_is", most=most, least=least, **numbers)


def _flagged(risks: Mapping[str, Any], counts: PaintedCounts, words: Words) -> tuple[str, str]:
    number = risks.get("rejected")
    if number is None:
        return UNKNOWN, words("risk.not_measured")
    if not number:
        return OK, words("risk.flagged_none")
    level = ACT if counts.reasons.get("nsfw") else WATCH
    reasons = ", ".join(f"{_reason(name, words)}\u00a0{words.whole(n)}" for name, n in counts.reasons.items())
    if sum(counts.reasons.values()) != number:  # some were flagged and kept, or folders have gone
        return level, words("risk.flagged_count", n=words.whole(number))
    return level, words("risk.flagged_some", n=words.whole(number), reasons=reasons)


def _reason(name: str, words: Words) -> str:
    key = f"risk.reason_{name.replace(' ', '_').replace('-', '_')}"
    return words(key) if words.has(key) else name


def _damaged(evidence: Evidence, words: Words) -> tuple[str, str]:
    results = (each for seeds in evidence.measured.values() for each in seeds)
    counted = [len(each["damaged_photos"]) for each in results if "damaged_photos" in each]
    number = evidence.poc["risks"].get("damaged", max(counted) if counted else None)
    if number is None:
        return UNKNOWN, words("risk.not_measured")
    return (WATCH, words("risk.damaged_some", n=words.whole(number))) if number else (OK, words("risk.damaged_none"))


def _licence(text: str | None, words: Words) -> tuple[str, str]:
    return (OK, text) if text else (UNKNOWN, words("risk.licence_unknown"))


def _seeds(arms: Sequence[Mapping[str, Any]], words: Words) -> tuple[str, str]:
    trained = [arm for arm in arms if is_trained(arm)]
    if not trained:
        return UNKNOWN, words("risk.not_measured")
    names = arm_names(arms, words)
    once = [names[arm["name"]] for arm in trained if len(arm["seeds"]) == 1]
    if len(once) == len(trained):
        return ACT, words("risk.seeds_one")
    if once:
        return WATCH, words("risk.seeds_some", names=", ".join(once))
    return OK, words("risk.seeds_many", n=min(len(arm["seeds"]) for arm in trained))
