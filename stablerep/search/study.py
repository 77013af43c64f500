"""The trials of a search and who does them: Optuna's study in a journal file that several processes append to.

A trial belongs to the process that has its claim (generate.claims: a file that only one can create). One whose process
has gone is done to its end by the next that looks, with the settings it was begun with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from stablerep.generate.claims import Claims
from stablerep.search.budget import Budget, Cost
from stablerep.search.space import Settings, Space
from stablerep.search.trial import Outcome

JOURNAL, NAME = "study.log", "search"
OUTCOME, SETTINGS = "outcome", "settings"  # attributes of a trial
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
FIRST_TRIALS = 5  # are not pruned
WORST_OUT = 67.0  # percentile that goes on: a few-step score is noisy, so only the worst third is ended
LOOK_STEP = 1


@dataclass(frozen=True)
class Draw:
    """A trial that this process is to do."""

    number: int
    settings: Settings
    again: bool  # begun by a process that has gone
    look: Callable[[float], bool]


@dataclass(frozen=True)
class Ended:
    """A trial that is over."""

    number: int
    settings: Settings
    outcome: Outcome

    @property
    def cost(self) -> Cost:
        return Cost(self.outcome.images, self.outcome.total_seconds)


class Study:
    """Draws trials and keeps what became of them."""

    def __init__(self, out: Path, space: Space, budget: Budget, seed: int, claims: Claims) -> None:
        self._space, self._budget, self._seed, self._claims = space, budget, seed, claims
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with claims.alone("open"):
            _mend(out / JOURNAL)
            self._study = optuna.create_study(
                study_name=NAME,
                storage=JournalStorage(JournalFileBackend(str(out / JOURNAL))),
                load_if_exists=True,
                direction="maximize",
                pruner=optuna.pruners.PercentilePruner(WORST_OUT, n_startup_trials=FIRST_TRIALS),
            )
            if not self._study.trials:
                for settings in space.grid or [space.start]:
                    named = settings.as_dict()
                    names = space.axes or {**space.ranges, **space.choices}
                    self._study.enqueue_trial({name: named[name] for name in names})

    def ended(self) -> list[Ended]:
        """All trials that are over, by number."""
        return [
            Ended(trial.number, Settings(**trial.user_attrs[SETTINGS]), Outcome(**trial.user_attrs[OUTCOME]))
            for trial in self._study.get_trials(deepcopy=False, states=ENDED)
        ]

    def at_work(self) -> int:
        """How many trials are begun and not over, here and elsewhere."""
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def next(self) -> Draw | None:
        """The next trial for this process; None where none is left that the budget allows."""
        with self._claims.alone("extend"):  # between a trial and its claim nobody may find it without
            for begun in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if not self._claims.holds(_name(begun.number)) and self._claims.take(_name(begun.number)):
                    return self._draw(self._trial(begun.number), again=True)
            costs = [each.cost for each in self.ended()]
            if not self._budget.allows(costs, self.at_work()) or (self._space.axes and not self._waiting()):
                return None
            trial = self._study.ask()
            taken = self._claims.take(_name(trial.number))
            assert taken, trial.number
            return self._draw(trial, again=False)

    def tell(self, number: int, outcome: Outcome) -> None:
        """End a trial."""
        trial = self._trial(number)
        trial.set_user_attr(OUTCOME, json.loads(json.dumps(outcome.__dict__)))
        self._study.tell(trial, outcome.score, STATES[outcome.state])
        self._claims.release(_name(number))

    def importances(self, least: int) -> dict[str, float]:
        """How much of what tells good trials from others each setting explains, together 1.

        PED-ANOVA (Watanabe et al. 2023). {} of fewer complete trials than least, and where only one setting had several
        values.
        """
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        values = {name: {trial.params[name] for trial in complete} for name in (complete[0].params if complete else ())}
        names = [name for name, different in values.items() if len(different) > 1 and name != "seed"]
        if len(complete) < least or len(names) < 2 or len({trial.value for trial in complete}) < 2:
            return {}
        shares = optuna.importance.get_param_importances(
            self._study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=names
        )
        return {name: round(share, 4) for name, share in shares.items()}

    def _waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _draw(self, trial: optuna.Trial, *, again: bool) -> Draw:
        # Of (seed, number): a process that goes on, or another one, draws what one process would have drawn anew.
        digest = sha256(f"{self._seed} {trial.number}".encode()).digest()
        self._study.sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "little"), constant_liar=True)
        settings = self._space.draw(trial)
        trial.set_user_attr(SETTINGS, settings.as_dict())

        def look(score: float) -> bool:
            if self._frozen(trial.number).intermediate_values:  # told before a stop; this look is a later one
                return False
            trial.report(score, LOOK_STEP)
            return trial.should_prune()

        return Draw(trial.number, settings, again, look)

    def _trial(self, number: int) -> optuna.Trial:
        # ask() makes new trials only; this is what it makes them of.
        return optuna.Trial(self._study, self._frozen(number)._trial_id)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


def _name(number: int) -> str:
    return f"trial-{number:04}"


def _mend(journal: Path) -> None:
    """Cut off a last line that was cut short: the next one written would join it, and nothing could be read again."""
    if not journal.exists():
        return
    lock: Any = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        data = journal.read_bytes()
        if data and not data.endswith(b"\n"):
            with journal.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)
    finally:
        lock.release()
