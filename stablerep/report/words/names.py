"""What a reader calls the arms of a proof of concept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stablerep.report.words.language import Words

KINDS = ("pixels", "untrained", "pretrained", "supervised", "real", "synthetic", "hybrid")


def arm_names(arms: Sequence[Mapping[str, Any]], words: Words) -> dict[str, str]:
    """A name in words for each arm's name. Two that would read alike in one comparison get their own name behind."""
    names = {arm["name"]: _name(arm, words) for arm in arms}
    seen = Counter((arm.get("comparison"), names[arm["name"]]) for arm in arms)
    for arm in arms:
        if seen[arm.get("comparison"), names[arm["name"]]] > 1:
            names[arm["name"]] += f" ({arm['name']})"
    return names


def in_a_sentence(arm: Mapping[str, Any], place: str, words: Words) -> str:
    """An arm as the `first` or `second` of two that a sentence compares."""
    return words(
        f"{place}.{_kind(arm)}",
        name=arm["name"],
        arch=arm.get("arch") or arm["name"],
        real=words.whole(arm.get("real_images") or 0),
        synthetic=words.whole(arm.get("synthetic_images") or 0),
    )


def _name(arm: Mapping[str, Any], words: Words) -> str:
    kind = _kind(arm)
    if kind == "hybrid":
        real, synthetic = arm.get("real_images") or 0, arm.get("synthetic_images") or 0
        return words("kinds.hybrid", share=words.whole(100 * real / max(1, real + synthetic)))
    if kind == "pretrained" and arm.get("arch"):
        return words("kinds.pretrained_arch", arch=arm["arch"])
    return arm["name"] if kind == "other" else words(f"kinds.{kind}")


def _kind(arm: Mapping[str, Any]) -> str:
    return arm["kind"] if arm["kind"] in KINDS else "other"
