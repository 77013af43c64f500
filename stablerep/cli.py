"""The console scripts: argv to config to one call. Errors a user can cause are one line, exit code 2.

The flags are read before the work is imported: diffusers and its like take seconds.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence

from stablerep.config import UserError, parse

MENDS = {
    errno.ENOSPC: "free some space and run the same command to go on; nothing finished is lost",
    errno.EDQUOT: "free some space and run the same command to go on; nothing finished is lost",
    errno.EACCES: "choose an --out you can write to",
    errno.EROFS: "choose an --out you can write to",
}


def gen(argv: Sequence[str] | None = None) -> None:
    """stablerep-gen"""

    def run(argv: Sequence[str]) -> None:
        from stablerep.generate.config import GenerateConfig

        config = parse(GenerateConfig, argv, "stablerep-gen")
        from stablerep.generate.job import generate

        print(generate(config))

    _command("stablerep-gen", run, argv)


def prompts(argv: Sequence[str] | None = None) -> None:
    """stablerep-prompts"""

    def run(argv: Sequence[str]) -> None:
        from stablerep.templates.config import PromptsConfig

        config = parse(PromptsConfig, argv, "stablerep-prompts")
        from stablerep.templates.job import write_prompts

        print(write_prompts(config))

    _command("stablerep-prompts", run, argv)


def train(argv: Sequence[str] | None = None) -> None:
    """stablerep-train"""

    def run(argv: Sequence[str]) -> None:
        from stablerep.train.config import TrainConfig

        config = parse(TrainConfig, argv, "stablerep-train")
        from stablerep.train.loop import train

        print(f"encoder in {train(config)}")

    _command("stablerep-train", run, argv)


def evaluate(argv: Sequence[str] | None = None) -> None:
    """stablerep-eval"""

    def run(argv: Sequence[str]) -> None:
        from stablerep.evaluate.config import EvaluateConfig

        config = parse(EvaluateConfig, argv, "stablerep-eval")
        from rich.console import Console

        from stablerep.evaluate.job import evaluate, table

        Console().print(table(evaluate(config)))

    _command("stablerep-eval", run, argv)


def doctor(argv: Sequence[str] | None = None) -> None:
    """stablerep-doctor"""

    def run(argv: Sequence[str]) -> None:
        from stablerep.doctor import report

        print(report())

    _command("stablerep-doctor", run, argv)


def _command(name: str, run: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> None:
    try:
        run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        _stop(name, str(error))
    except OSError as error:
        if error.errno not in MENDS:
            raise
        _stop(name, f"{error.strerror}: {error.filename or '--out'}; {MENDS[error.errno]}")
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _stop(name: str, message: str) -> None:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(2)
