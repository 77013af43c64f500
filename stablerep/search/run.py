"""One search: trials within a budget, then what they say together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stablerep.config import UserError
from stablerep.generate.claims import Claims
from stablerep.search.config import SearchConfig
from stablerep.search.plan import Plan, begin, plan_of
from stablerep.search.proxy import Proxy
from stablerep.search.results import RESULTS, best_of, write_results
from stablerep.search.study import Draw, Ended, Study
from stablerep.search.trial import Bench, Outcome, fail_trial, folder_of, run_trial

log = logging.getLogger("stablerep.search")


def search(config: SearchConfig, proxy: Proxy) -> dict[str, Any]:
    """Do trials until the budget is spent, or a grid is whole; returns what search.json holds.

    Goes on with the search in config.out, also with trials whose process was killed. Other processes may do the same
    in the same folder at once; each returns when it finds no trial to begin.

    Args:
        proxy: scores painted pictures without training.

    Raises:
        UserError: what plan_of refuses, what the first trial's commands refuse, or no trial has got a score.
    """
    if config.dry_run:
        raise UserError("--dry-run searches nothing; in Python call stablerep.search.dry_run.estimate(config, proxy)")
    plan, out = plan_of(config), Path(config.out)
    with Claims(out) as claims:
        with claims.alone("begin"):
            begin(plan, out)
        study = Study(out, plan.space, plan.budget, config.seed, claims)
        bench = plan.bench(out, proxy)
        while (draw := study.next()) is not None:
            outcome = _do(plan, bench, study, draw)
            study.tell(draw.number, outcome)
            ended = study.ended()
            _say(plan, draw, outcome, ended)
            with claims.alone("record"):
                write_results(plan, study, proxy.name, out)
        with claims.alone("record"):  # a process may have been killed between its last trial and this
            results = write_results(plan, study, proxy.name, out)
        if at_work := study.at_work():
            others = "another process" if at_work == 1 else "other processes"
            log.info(
                "%d of the trials at work still, in %s: %s will be brought up to date", at_work, others, out / RESULTS
            )
    if results["best"] is None:
        raise UserError(_why_nothing(study.ended(), out))
    return results


def _do(plan: Plan, bench: Bench, study: Study, draw: Draw) -> Outcome:
    """A trial to its end. One that a command refuses has failed, unless no other has shown that the rest is sound."""
    folder = folder_of(bench.out, draw.number)
    log.info("trial %d%s: %s", draw.number, " (goes on)" if draw.again else "", draw.settings)
    try:
        return run_trial(bench, draw.number, draw.settings, folder, draw.look)
    except UserError as error:
        if not any(each.outcome.state == "complete" for each in study.ended()):
            raise UserError(f"trial {draw.number} ({draw.settings}): {error}") from error
        images = plan.num_prompts * draw.settings.num_images_per_prompt
        return fail_trial(folder, images, str(error))


def _say(plan: Plan, draw: Draw, outcome: Outcome, ended: Sequence[Ended]) -> None:
    """A line on a trial that has ended here."""
    cost = f"{outcome.images:,} pictures, {outcome.total_seconds:.0f} s"
    left = plan.budget.left([each.cost for each in ended])
    if plan.space.axes:
        left = "; ".join(filter(None, (f"{len(ended)} of {len(plan.space.grid)} points", left)))
    best = best_of(ended)
    if outcome.state == "failed":
        said = f"failed: {outcome.reason}"
    elif outcome.state == "pruned":
        said = f"ended after a third of its training, kNN {outcome.few_step:.1f} % of training photos held out"
    else:
        assert outcome.score is not None and best is not None
        interval = (
            f" ± {outcome.ci95:.1f}" if outcome.measured is not None and outcome.measured == outcome.score else ""
        )
        proxy = f", proxy {outcome.proxy:.4g}" if outcome.score != outcome.proxy else ""
        said = f"{plan.config.measure if interval else plan.config.proxy} {outcome.score:.4g}{interval}{proxy}"
        said += (
            ", the best so far"
            if best.number == draw.number
            else f" (best {best.outcome.score:.4g}, trial {best.number})"
        )
    log.info("trial %d: %s; %s; %s", draw.number, said, cost, left)


def _why_nothing(ended: Sequence[Ended], out: Path) -> str:
    failed = [each for each in ended if each.outcome.state == "failed"]
    if failed:
        return f"no trial in {out} has a score; trial {failed[-1].number} failed: {failed[-1].outcome.reason}"
    return f"no trial in {out} has a score yet; raise the budget to go on"
