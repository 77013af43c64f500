"""Commands that make an encoder: train, eval, export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stablerep.cli.flags import parse_flags
from stablerep.config import UserError
from stablerep.process import run_command


def train(argv: Sequence[str] | None = None) -> None:
    """Train an encoder on shards or photos."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.train.config import TrainConfig

        config = parse_flags(TrainConfig, argv, "stablerep-train")
        open_online = None
        if config.online:
            from stablerep.generate.online import opener

            open_online = opener(config.online, config.out)
        if config.dry_run:
            from stablerep.train.dry_run import estimate

            print(estimate(config, open_online))
            return
        open_probe = None
        if config.watch:
            from stablerep.evaluate.watch import open_watch

            open_probe = open_watch(config.watch, config.seed)
        from stablerep.train.loop import train

        exported = train(config, open_online, open_probe)
        from stablerep.train.summary import summarise
        from stablerep.train.watch import best_line

        if os.environ.get("RANK", "0") == "0":  # under torchrun every rank comes here
            print("\n".join([f"encoder in {exported}", *best_line(config.out), *summarise(config.out)]))

    run_command("stablerep-train", run, argv)


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Measure a frozen encoder on labelled photos."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.evaluate.config import EvaluateConfig

        if "--compare" in argv:
            return _compare(argv)
        config = parse_flags(EvaluateConfig, argv, "stablerep-eval")
        from rich.console import Console

        from stablerep.evaluate.run import evaluate, notes
        from stablerep.evaluate.summary import table, worst_classes

        results = evaluate(config)
        if os.environ.get("RANK", "0") == "0":  # under torchrun every rank comes here
            Console().print(table(results))
            print("\n".join([*worst_classes(results), *notes(results)]))

    run_command("stablerep-eval", run, argv)


def _compare(argv: Sequence[str]) -> None:
    at = list(argv).index("--compare")
    folders, others = argv[at + 1 : at + 3], [*argv[:at], *argv[at + 3 :]]
    if len(folders) < 2 or others:
        raise UserError(
            "--compare takes the --out folders of two evaluations, and no other flags: --compare RUN_A RUN_B"
        )
    from stablerep.evaluate.compare import lines

    print("\n".join(lines(*(Path(folder).expanduser() for folder in folders))))


def export(argv: Sequence[str] | None = None) -> None:
    """Write an encoder for timm, the hub, ONNX or TensorRT."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.export.config import ExportConfig

        first = ["--checkpoint"] if argv and not argv[0].startswith("-") else []
        config = parse_flags(ExportConfig, [*first, *argv], "stablerep-export")
        from stablerep.export.run import export

        print("\n".join(export(config)))

    run_command("stablerep-export", run, argv)
