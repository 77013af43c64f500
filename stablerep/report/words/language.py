"""One language: texts by key, numbers as its readers write them."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

MINUTE, HOUR, DAY = 60, 3600, 86400


class Words:
    """Texts by dotted key, `words("cost.title")`; places in them are filled by name."""

    def __init__(self, texts: dict[str, Any]) -> None:
        self._texts = texts

    def __call__(self, key: str, **values: object) -> str:
        """
        Raises:
            KeyError: no such text, or a place that no value fills.
        """
        text: Any = self._texts
        for part in key.split("."):
            text = text[part]
        return text.format(**values)

    def has(self, key: str) -> bool:
        section, _, name = key.partition(".")
        return name in self._texts.get(section, {})

    def together(self, *sentences: str) -> str:
        """Sentences in a row: Japanese ones stand without a space between them."""
        return ("" if self("html.lang") == "ja" else " ").join(sentences)

    def whole(self, value: float) -> str:
        """1,234"""
        return self._signed(f"{round(value):,}")

    def fixed(self, value: float | None, digits: int = 1) -> str:
        """83.6; what was not measured is a dash."""
        return "–" if value is None else self._signed(f"{value:,.{digits}f}")

    def signed(self, value: float, digits: int = 1) -> str:
        """+1.9, and −0.4 with a true minus."""
        return self._signed(f"{value:+,.{digits}f}")

    def short(self, value: float | None) -> str:
        """Three digits, whatever the size: 0.00123, 4.56, 12,300."""
        if value is None:
            return "–"
        if abs(value) >= 100:
            return self.whole(value)
        return self._signed(f"{value:.3g}")

    def seconds(self, value: float) -> str:
        """42 s, 8.5 min, 3.2 h, 12 days."""
        for unit, name in ((DAY, "days"), (HOUR, "hours"), (MINUTE, "minutes")):
            if value >= (2 if unit == DAY else 1) * unit:
                return self(f"number.{name}", n=self.short(round(value / unit, 1)))
        return self("number.seconds", n=self.short(round(value, 1)))

    def usd(self, value: float) -> str:
        """$1,234 and $12.40; below a dollar two digits that count: $0.0023."""
        if value >= 1000:
            text = f"{value:,.0f}"
        elif value >= 1 or value == 0:
            text = f"{value:,.2f}"
        else:
            text = f"{Decimal(f'{value:.2g}'):f}"  # never 6.3e-07
        return self("number.usd", n=text)

    def points(self, value: float) -> str:
        return self("number.points", n=self.fixed(value))

    def _signed(self, text: str) -> str:
        return text.replace("-", self("number.minus"))


@lru_cache
def open_words(lang: str) -> Words:
    """The words of `en` or `ja`."""
    return Words(yaml.safe_load((Path(__file__).parent / f"{lang}.yaml").read_text(encoding="utf-8")))
