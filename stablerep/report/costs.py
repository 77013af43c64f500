"""What a run took: hours, energy, dollars, and from how many pictures on painting is cheaper than photographing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stablerep.report.config import ReportConfig

FIXED = ("adapt", "search")  # paid once, however many pictures are painted


@dataclass(frozen=True)
class Step:
    name: str
    kind: str
    seconds: float
    images: int
    kwh: float | None
    usd: float | None


@dataclass(frozen=True)
class BreakEven:
    """Cost in dollars by number of pictures: a line for photos, and one for synthetic pictures."""

    fixed: float  # spent before the first picture
    paint: float  # a picture
    photo: float  # a photo, taken and labelled

    @property
    def pictures(self) -> float | None:
        """Where the lines meet; None: nowhere."""
        return self.fixed / (self.photo - self.paint) if self.photo > self.paint else None


@dataclass(frozen=True)
class Bill:
    steps: Sequence[Step]
    device: str
    kwh: float | None
    kwh_steps: int  # whose energy is known
    is_entered: bool  # some energy follows from --watts
    usd: float | None
    painted: int
    per_thousand: float | None  # dollars for painting 1,000 pictures
    threshold: float | None  # dollars for a photo, above which the pictures painted here are the cheaper ones
    break_even: BreakEven | None

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def is_gpu(self) -> bool:
        return any(word in self.device.lower() for word in ("cuda", "nvidia", "gpu"))


def bill_of(costs: Mapping[str, Any], config: ReportConfig) -> Bill:
    """The bill of poc.json's costs, at the prices that were entered; its own price of an hour holds where none is."""
    hour = config.usd_per_hour if config.usd_per_hour is not None else costs.get("usd_per_hour")
    steps = [_step(each, hour, config) for each in costs["steps"]]
    known = [step.kwh for step in steps if step.kwh is not None]
    usd = [step.usd for step in steps if step.usd is not None]
    painting = [step for step in steps if step.kind == "paint"]
    painted = sum(step.images for step in painting)
    paint = _share(painting, painted)
    fixed = sum(step.usd or 0.0 for step in steps if step.kind in FIXED)
    prices = [price for price in (config.usd_per_photo, config.usd_per_label) if price is not None]
    break_even = BreakEven(fixed, paint, sum(prices)) if paint is not None and prices else None
    return Bill(
        steps=steps,
        device=str(costs["device"]),
        kwh=sum(known) if known else None,
        kwh_steps=len(known),
        is_entered=config.watts is not None and any(each.get("kwh") is None for each in costs["steps"]),
        usd=sum(usd) if usd else None,
        painted=painted,
        per_thousand=None if paint is None else 1000 * paint,
        threshold=None if paint is None else paint + fixed / painted,
        break_even=break_even,
    )


def _step(each: Mapping[str, Any], hour: float | None, config: ReportConfig) -> Step:
    hours, kwh = each["seconds"] / 3600, each.get("kwh")
    if kwh is None and config.watts is not None:
        kwh = hours * config.watts / 1000
    parts = [hours * hour] if hour is not None else []
    if kwh is not None and config.usd_per_kwh is not None:
        parts.append(kwh * config.usd_per_kwh)
    usd = sum(parts) if parts else None
    return Step(str(each["name"]), each["kind"], each["seconds"], each.get("images") or 0, kwh, usd)


def _share(painting: Sequence[Step], painted: int) -> float | None:
    """Dollars a painted picture; None where they are not known of every step."""
    if not painted or any(step.usd is None for step in painting):
        return None
    return sum(step.usd or 0.0 for step in painting) / painted
