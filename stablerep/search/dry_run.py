"""`stablerep-search --dry-run`: how many trials the budget allows, from one that is measured. Keeps nothing."""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path

from stablerep.generate.claims import Claims
from stablerep.runlog import as_number
from stablerep.search.budget import HOUR, Cost
from stablerep.search.config import SearchConfig
from stablerep.search.plan import Plan, plan_of
from stablerep.search.proxy import Proxy
from stablerep.search.split import write_photos
from stablerep.search.study import JOURNAL, Study
from stablerep.search.trial import folder_of, run_trial

log = logging.getLogger("stablerep.search")


def estimate(config: SearchConfig, proxy: Proxy) -> str:
    """Do the first trial in a folder that is thrown away, or take the mean of those that --out holds already.

    Raises:
        UserError: what search() would refuse.
    """
    plan, out = plan_of(config), Path(config.out)
    ended = _ended(plan, out)
    if ended:
        cost = Cost(round(_mean([c.images for c in ended])), _mean([c.seconds for c in ended]))
        of = f"mean of {len(ended)} trials in {out}"
    else:
        cost, of = _measure(plan, proxy), f"{(plan.space.grid or [plan.space.start])[0]}"
    return "\n".join(_lines(plan, cost, of, ended))


def _ended(plan: Plan, out: Path) -> list[Cost]:
    if not (out / JOURNAL).exists():
        return []
    with Claims(out) as claims:
        return [each.cost for each in Study(out, plan.space, plan.budget, plan.config.seed, claims).ended()]


def _measure(plan: Plan, proxy: Proxy) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        out, settings = Path(folder), (plan.space.grid or [plan.space.start])[0]
        write_photos(out, plan.real)
        log.info("measuring a trial: %s", settings)
        outcome = run_trial(plan.bench(out, proxy), 0, settings, folder_of(out, 0))
        return Cost(outcome.images, outcome.total_seconds)


def _lines(plan: Plan, cost: Cost, of: str, ended: list[Cost]) -> list[str]:
    price = plan.budget.usd_per_hour
    usd = "" if price is None else f", ${cost.seconds * price / HOUR:,.3f}"
    lines = [f"a trial    {cost.images:,} pictures, {as_number(cost.seconds)} s{usd}: {of}"]
    points, fewest = len(plan.space.grid), plan.num_prompts * plan.space.fewest_images_per_prompt
    most = plan.budget.trials_of(cost)
    if points:
        lines.append(f"the grid   {points} trials, {points - len(ended)} to do")
        most = min(most, points)
    left = max(most - len(ended), 0)
    done = f", {len(ended)} of them done" if ended else ""
    seconds = as_number(left * cost.seconds / HOUR)
    lines.append(f"the budget about {most:,.0f} trials{done}" if most < math.inf else "the budget has no end")
    money = "" if price is None else f", ${left * cost.seconds * price / HOUR:,.2f}"
    lines.append(f"to do      {left * cost.images:,.0f} pictures, {seconds} hours of one worker{money}")
    lines.append(
        f"           one paints {fewest:,} to {plan.budget.most_images:,} pictures by the ranges; its time goes with "
        "pictures and steps"
    )
    return lines


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
