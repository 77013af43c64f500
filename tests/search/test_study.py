"""The journal: who does which trial, what a process leaves behind that dies, and what is drawn."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from stablerep.config import from_fields
from stablerep.generate.claims import Claims
from stablerep.search.budget import Budget
from stablerep.search.config import SearchConfig
from stablerep.search.space import Space, space_of
from stablerep.search.study import JOURNAL, Study
from stablerep.search.trial import Outcome


def space(**changes: Any) -> Space:
    return space_of(from_fields(SearchConfig, {"prompts": "p", "real": "r", "out": "o", "trials": 1, **changes}))


def budget(trials: int) -> Budget:
    return Budget(math.inf, math.inf, trials, 100, None)


def outcome(score: float | None, state: str = "complete", **changes: Any) -> Outcome:
    known = {"measured": score, "ci95": 1.0, "proxy": 0.5, "few_step": None, "images": 40, "seconds": {"paint": 1.0}}
    return Outcome(state=state, score=score, **(known | changes))


def scored(settings: Any) -> float:
    """A score with its best at guidance 3."""
    return 80 - 10 * abs(math.log(settings.guidance_scale / 3)) - (settings.scheduler == "euler")


def run(out: Path, trials: int, seed: int = 0, searched: Space | None = None) -> list[tuple[int, dict[str, Any]]]:
    with Claims(out) as claims:
        study = Study(out, searched or space(), budget(trials), seed, claims)
        while (draw := study.next()) is not None:
            study.tell(draw.number, outcome(scored(draw.settings)))
        return [(each.number, each.settings.as_dict()) for each in study.ended()]


def test_the_first_trial_is_the_recipe_and_stops_change_no_draw(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 14)
    assert whole[0][1]["guidance_scale"] == 2.0 and whole[0][1]["num_inference_steps"] == 50
    assert len({str(settings) for _, settings in whole}) == 14
    run(tmp_path / "in_parts", 3)
    run(tmp_path / "in_parts", 8)
    assert run(tmp_path / "in_parts", 14) == whole
    assert run(tmp_path / "another", 14, seed=1)[1:] != whole[1:]


def test_it_finds_what_is_better(tmp_path: Path) -> None:
    trials = run(tmp_path, 40)
    late = [settings["guidance_scale"] for _, settings in trials[25:]]
    assert sum(2 < scale < 4.5 for scale in late) > len(late) / 2  # by chance 39 %


def begin_and_hang(out: Path, ready: Any) -> None:
    claims = Claims(out).__enter__()
    study = Study(out, space(), budget(4), 0, claims)
    draw = study.next()
    assert draw is not None
    ready.put((draw.number, draw.settings.as_dict()))
    signal.pause()


def test_a_trial_whose_process_is_killed_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    process = context.Process(target=begin_and_hang, args=(tmp_path, ready))
    process.start()
    number, settings = ready.get(timeout=60)
    with Claims(tmp_path) as claims:
        study = Study(tmp_path, space(), budget(4), 0, claims)
        ours = study.next()
        assert ours is not None and (ours.number, ours.again) == (1, False)  # 0 is theirs
        study.tell(1, outcome(50.0))
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        theirs = study.next()
        assert theirs is not None and theirs.again
        assert (theirs.number, theirs.settings.as_dict()) == (number, settings)
        study.tell(0, outcome(60.0))
        assert [each.number for each in study.ended()] == [0, 1]
    assert [number for number, _ in run(tmp_path, 4)] == [0, 1, 2, 3]


def test_a_line_cut_short_is_cut_off(tmp_path: Path) -> None:
    run(tmp_path, 2)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x"')
    assert [number for number, _ in run(tmp_path, 3)] == [0, 1, 2]
    assert [number for number, _ in run(tmp_path, 4)] == [0, 1, 2, 3]


def test_the_worst_third_is_pruned_and_a_failure_is_kept(tmp_path: Path) -> None:
    pruned = []
    with Claims(tmp_path) as claims:
        study = Study(tmp_path, space(), budget(9), 0, claims)
        while (draw := study.next()) is not None:
            if draw.number == 1:
                study.tell(1, outcome(None, "failed", reason="no gradient was finite"))
                continue
            few = 10.0 if draw.number in (2, 7) else 50.0 + draw.number
            if draw.look(few):
                pruned.append(draw.number)
                study.tell(draw.number, outcome(None, "pruned", few_step=few))
            else:
                study.tell(draw.number, outcome(few))
        states = {each.number: each.outcome.state for each in study.ended()}
    assert pruned == [7]  # 2 is as bad, but among the first
    assert states[1] == "failed" and states[7] == "pruned" and list(states.values()).count("complete") == 7


def test_a_grid_is_done_once_each(tmp_path: Path) -> None:
    searched = space(grid=("guidance_scale", "1", "2", "6"), seeds=2)
    done = run(tmp_path, 1000, searched=searched)
    assert [settings for _, settings in done] == [point.as_dict() for point in searched.grid]
    assert run(tmp_path, 1000, searched=searched) == done


def test_importances_name_what_matters(tmp_path: Path) -> None:
    run(tmp_path, 30)
    with Claims(tmp_path) as claims:
        study = Study(tmp_path, space(), budget(30), 0, claims)
        shares = study.importances(6)
        assert study.importances(31) == {}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert max(shares, key=lambda name: shares[name]) == "guidance_scale"
