"""Commands that make pictures: prompts, gen, adapt, engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from stablerep.cli.flags import HELP, HELP_ALL, parse_flags, show, take_folder, usage, with_cache_folders
from stablerep.config import UserError, check_choice, parse, print_completion
from stablerep.process import COMPLETION, importing, run_command
from stablerep.storage import Folder


def gen(argv: Sequence[str] | None = None) -> None:
    """Paint pictures of prompts into shards."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.generate.config import GenerateConfig

        folder, others = take_folder("--verify", argv)
        if folder:
            return _verify(folder, others)
        folder, others = take_folder("--repair", argv)
        if folder:
            return _repair(folder, others)
        config = with_cache_folders(parse_flags(GenerateConfig, argv, "stablerep-gen"))
        if config.dry_run:
            with importing():
                from stablerep.generate.dry_run import estimate

            print(estimate(config))
            return
        with importing():
            from stablerep.generate.run import generate

        summary = generate(config)
        print(summary)
        if summary.problem:
            print(f"stablerep-gen: {summary.problem}", file=sys.stderr)
            sys.exit(3)

    run_command("stablerep-gen", run, argv)


def _verify(out: Folder, others: Sequence[str]) -> None:
    from stablerep.generate.verify import runs_in, verify

    if others:
        raise UserError(f"--verify {out} takes no other flags, got {others[0]}")
    verdicts = [verify(folder) for folder in runs_in(out)]
    for verdict in verdicts:
        for problem in verdict.problems:
            print(problem)
        print(verdict)
    if any(verdict.problems for verdict in verdicts):
        sys.exit(1)


def _repair(out: Folder, others: Sequence[str]) -> None:
    from stablerep.generate.config import GenerateConfig
    from stablerep.generate.verify import recorded_flags, repair, runs_in

    left = 0
    for folder in runs_in(out):
        argv, about = [*others, "--out", str(folder)], Path(f"{folder}/dataset.json")
        config = parse(GenerateConfig, argv, "stablerep-gen", recorded_flags(folder), about)
        before, after = repair(with_cache_folders(config))
        for problem in before.problems:
            print(problem)
        for problem in after.problems:
            print(f"still {problem}")
        print(after)
        left += len(after.problems)
    if left:
        sys.exit(1)


def prompts(argv: Sequence[str] | None = None) -> None:
    """Make prompts of a list of classes."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.prompts.config import PromptsConfig

        config = parse_flags(PromptsConfig, argv, "stablerep-prompts")
        from stablerep.prompts.writer import write_prompts

        print(write_prompts(config))

    run_command("stablerep-prompts", run, argv)


def adapt(argv: Sequence[str] | None = None) -> None:
    """Teach a diffusion model one's own photos."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.adapt.config import AdaptConfig

        config = parse_flags(AdaptConfig, argv, "stablerep-adapt")
        with importing():
            from stablerep.adapt.run import adapt, estimate
            from stablerep.generate.samples import open_model, paint_samples
            from stablerep.train.stopping import listening

        if config.dry_run:
            print(estimate(config, open_model, paint_samples))
        else:
            print(adapt(config, open_model, paint_samples, listening))

    run_command("stablerep-adapt", run, argv)


def engine(argv: Sequence[str] | None = None) -> None:
    """Compile a model's UNet and VAE, and look after what is compiled."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.engines.config import COMMANDS

        verb, *rest = argv or ["--help"]
        if verb in (*HELP, HELP_ALL):
            show(usage("stablerep-engine", COMMANDS))
            return
        if verb.startswith(COMPLETION):
            return print_completion("stablerep-engine", COMMANDS, argv)
        check_choice("stablerep-engine", verb, COMMANDS)
        config = with_cache_folders(parse_flags(COMMANDS[verb], rest, f"stablerep-engine {verb}"))
        from stablerep.engines.commands import run
        from stablerep.generate.pipeline import open_pipeline

        model_config = getattr(config, "model_config", None)
        for line in run(config, lambda model, device, dtype: open_pipeline(model, device, (), dtype, model_config)):
            print(line, flush=True)

    run_command("stablerep-engine", run, argv)
