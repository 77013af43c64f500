"""What a report is asked to say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from stablerep.config import UserError, check_choice, flag_of

LANGUAGES = ("en", "ja")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Put what was measured on one HTML page that can be mailed, printed and read aloud."""

    run: Path
    """The --out of stablerep-poc; or a folder with evaluations, trainings and painted pictures, of which the page shows
    what is there and names what is missing. Also as the first word, without the flag."""

    lang: str = "en"
    """`en` or `ja`."""

    out: Path | None = None
    """The file to write; RUN/report.html if not given, in Japanese RUN/report.ja.html."""

    usd_per_hour: float | None = None
    """What an hour of the machine costs; if not given, what the proof of concept was told."""

    usd_per_kwh: float | None = None
    """What a kilowatt-hour costs, where the price of the hour does not hold it already."""

    watts: float | None = None
    """Power of the machine at work, for steps whose energy was not measured."""

    usd_per_label: float | None = None
    """What it costs to label one photo. With --usd-per-photo it draws the break-even."""

    usd_per_photo: float | None = None
    """What it costs to take one photo."""

    generator_licence: str | None = None
    """Licence of the text-to-image model, as the page is to state it."""

    prompts_licence: str | None = None
    """Licence of the prompts, or where they are from."""

    def __post_init__(self) -> None:
        check_choice("--lang", self.lang, LANGUAGES)
        for name in ("usd_per_hour", "usd_per_kwh", "watts", "usd_per_label", "usd_per_photo"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{flag_of(name)} must be a number from 0 on, got {value}")

    @property
    def file(self) -> Path:
        """Where the page goes."""
        return self.out or self.run / ("report.html" if self.lang == "en" else f"report.{self.lang}.html")
