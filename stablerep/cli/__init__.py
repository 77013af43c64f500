"""The console scripts: argv to config to one call. Errors a user can cause are one line, exit code 2.

The flags are read before the work is imported: diffusers and its like take seconds.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from stablerep.cli.decision import poc, quality, report, search
from stablerep.cli.encoder import evaluate, export, train
from stablerep.cli.flags import HELP, HELP_ALL, show, usage
from stablerep.cli.generator import adapt, engine, gen, prompts
from stablerep.config import UserError, check_choice, print_completion
from stablerep.process import COMPLETION, run_command

MORE = """stablerep train is stablerep-train, and so on; --help of each says more.
--version says which version this is.

Completion (bash; zsh and fish alike): stablerep --tyro-print-completion bash \\
    > ~/.local/share/bash-completion/completions/stablerep"""


def doctor(argv: Sequence[str] | None = None) -> None:
    """Say what is installed, what is missing, and how to mend it."""

    def run(argv: Sequence[str]) -> None:
        if {*argv} & {*HELP, HELP_ALL}:
            print(f"usage: stablerep-doctor\n\n{doctor.__doc__}")
            return
        if argv:
            raise UserError(f"takes no flags, got {argv[0]}")
        from stablerep.doctor import report

        print(report())

    run_command("stablerep-doctor", run, argv)


COMMANDS: dict[str, Callable[[Sequence[str] | None], None]] = {
    "prompts": prompts, "gen": gen, "adapt": adapt, "engine": engine,
    "train": train, "eval": evaluate, "export": export,
    "quality": quality, "search": search, "poc": poc, "report": report, "doctor": doctor,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """stablerep VERB is stablerep-VERB."""

    def run(argv: Sequence[str]) -> None:
        verb = argv[0] if argv else "--help"
        if verb in (*HELP, HELP_ALL):
            show(f"{usage('stablerep', COMMANDS)}\n\n{MORE}")
            return
        if verb.startswith(COMPLETION):
            return print_completion("stablerep", _configs(), argv)
        check_choice("stablerep", verb, COMMANDS)

    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    else:
        run_command("stablerep", run, argv)


def _configs() -> dict[str, Any]:
    """The flags of each command, for completion."""
    from stablerep.adapt.config import AdaptConfig
    from stablerep.engines.config import COMMANDS as ENGINE
    from stablerep.evaluate.config import EvaluateConfig
    from stablerep.evaluate.quality.config import QualityConfig
    from stablerep.export.config import ExportConfig
    from stablerep.generate.config import GenerateConfig
    from stablerep.poc.config import PocConfig
    from stablerep.prompts.config import PromptsConfig
    from stablerep.report.config import ReportConfig
    from stablerep.search.config import SearchConfig
    from stablerep.train.config import TrainConfig

    return {
        "prompts": PromptsConfig, "gen": GenerateConfig, "adapt": AdaptConfig, "engine": ENGINE,
        "train": TrainConfig, "eval": EvaluateConfig, "export": ExportConfig,
        "quality": QualityConfig, "search": SearchConfig, "poc": PocConfig, "report": ReportConfig,
        "doctor": dataclasses.make_dataclass("Doctor", []),
    }  # fmt: skip
