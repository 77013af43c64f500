"""The console scripts: argv to config to one call. Errors a user can cause are one line, exit code 2.

The flags are read before the work is imported: diffusers and its like take seconds.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stablerep.config import Config, UserError, check_choice, parse, print_completion
from stablerep.process import COMPLETION, importing, run_command
from stablerep.storage import Folder, place

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
MORE = """stablerep train is stablerep-train, and so on; --help of each says more.
--version says which version this is.

Completion (bash; zsh and fish alike): stablerep --tyro-print-completion bash \\
    > ~/.local/share/bash-completion/completions/stablerep"""


def gen(argv: Sequence[str] | None = None) -> None:
    """Paint pictures of prompts into shards."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.generate.config import GenerateConfig

        folder, others = _take_folder("--verify", argv)
        if folder:
            return _verify(folder, others)
        folder, others = _take_folder("--repair", argv)
        if folder:
            return _repair(folder, others)
        config = _with_cache_folders(_parse(GenerateConfig, argv, "stablerep-gen"))
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


def prompts(argv: Sequence[str] | None = None) -> None:
    """Make prompts of a list of classes."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.prompts.config import PromptsConfig

        config = _parse(PromptsConfig, argv, "stablerep-prompts")
        from stablerep.prompts.writer import write_prompts

        print(write_prompts(config))

    run_command("stablerep-prompts", run, argv)


def _take_folder(flag: str, argv: Sequence[str]) -> tuple[Folder | None, list[str]]:
    """The folder after a flag, or joined to it by =, and the other words."""
    for at, word in enumerate(argv):
        if word == flag or word.startswith(flag + "="):
            joined = [word[len(flag) + 1 :]] if "=" in word else list(argv[at + 1 : at + 2])
            if not joined or not joined[0] or joined[0].startswith("--"):
                raise UserError(f"{flag} needs the folder to look at: stablerep-gen {flag} OUT")
            return place(os.path.expanduser(joined[0])), [*argv[:at], *argv[at + (1 if "=" in word else 2) :]]
    return None, list(argv)


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
        before, after = repair(_with_cache_folders(config))
        for problem in before.problems:
            print(problem)
        for problem in after.problems:
            print(f"still {problem}")
        print(after)
        left += len(after.problems)
    if left:
        sys.exit(1)


def train(argv: Sequence[str] | None = None) -> None:
    """Train an encoder on shards or photos."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.train.config import TrainConfig

        config = _parse(TrainConfig, argv, "stablerep-train")
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


def adapt(argv: Sequence[str] | None = None) -> None:
    """Teach a diffusion model one's own photos."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.adapt.config import AdaptConfig

        config = _parse(AdaptConfig, argv, "stablerep-adapt")
        with importing():
            from stablerep.adapt.run import adapt, estimate
            from stablerep.generate.pipeline import open_pipeline
            from stablerep.generate.samples import paint_samples
            from stablerep.train.stopping import listening

        def open_model(model: str, device: Any, dtype: Any, model_config: str | None) -> Any:
            return open_pipeline(model, device, (), dtype, model_config)

        if config.dry_run:
            print(estimate(config, open_model, paint_samples))
        else:
            print(adapt(config, open_model, paint_samples, listening))

    run_command("stablerep-adapt", run, argv)


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Measure a frozen encoder on labelled photos."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.evaluate.config import EvaluateConfig

        config = _parse(EvaluateConfig, argv, "stablerep-eval")
        from rich.console import Console

        from stablerep.evaluate.run import evaluate, notes, table

        results = evaluate(config)
        Console().print(table(results))
        print("\n".join(notes(results)))

    run_command("stablerep-eval", run, argv)


def export(argv: Sequence[str] | None = None) -> None:
    """Write an encoder for timm, the hub, ONNX or TensorRT."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.export.config import ExportConfig

        first = ["--checkpoint"] if argv and not argv[0].startswith("-") else []
        config = _parse(ExportConfig, [*first, *argv], "stablerep-export")
        from stablerep.export.run import export

        print("\n".join(export(config)))

    run_command("stablerep-export", run, argv)


def engine(argv: Sequence[str] | None = None) -> None:
    """Compile a model's UNet and VAE, and look after what is compiled."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.engines.config import COMMANDS

        verb, *rest = argv or ["--help"]
        if verb in (*HELP, HELP_ALL):
            _show(_usage("stablerep-engine", COMMANDS))
            return
        if verb.startswith(COMPLETION):
            return print_completion("stablerep-engine", COMMANDS, argv)
        check_choice("stablerep-engine", verb, COMMANDS)
        config = _with_cache_folders(_parse(COMMANDS[verb], rest, f"stablerep-engine {verb}"))
        from stablerep.engines.commands import run
        from stablerep.generate.pipeline import open_pipeline

        model_config = getattr(config, "model_config", None)
        for line in run(config, lambda model, device, dtype: open_pipeline(model, device, (), dtype, model_config)):
            print(line, flush=True)

    run_command("stablerep-engine", run, argv)


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
    "prompts": prompts, "gen": gen, "adapt": adapt, "train": train, "eval": evaluate, "export": export,
    "engine": engine, "doctor": doctor,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """stablerep VERB is stablerep-VERB."""

    def run(argv: Sequence[str]) -> None:
        verb = argv[0] if argv else "--help"
        if verb in (*HELP, HELP_ALL):
            _show(f"{_usage('stablerep', COMMANDS)}\n\n{MORE}")
            return
        if verb.startswith(COMPLETION):
            return print_completion("stablerep", _configs(), argv)
        check_choice("stablerep", verb, COMMANDS)

    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    else:
        run_command("stablerep", run, argv)


def _show(text: str) -> None:
    """Print a page, of which `| head` may read the beginning alone."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again


def _configs() -> dict[str, Any]:
    """The flags of each command, for completion."""
    from stablerep.adapt.config import AdaptConfig
    from stablerep.engines.config import COMMANDS as ENGINE
    from stablerep.evaluate.config import EvaluateConfig
    from stablerep.export.config import ExportConfig
    from stablerep.generate.config import GenerateConfig
    from stablerep.prompts.config import PromptsConfig
    from stablerep.train.config import TrainConfig

    flags = {"prompts": PromptsConfig, "gen": GenerateConfig, "train": TrainConfig, "eval": EvaluateConfig}
    doctor = dataclasses.make_dataclass("Doctor", [])
    return {**flags, "adapt": AdaptConfig, "export": ExportConfig, "engine": ENGINE, "doctor": doctor}


def _usage(prog: str, verbs: Mapping[str, object]) -> str:
    lines = [f"  {verb:9}{(inspect.getdoc(what) or '').partition(chr(10))[0]}" for verb, what in verbs.items()]
    return "\n".join([f"usage: {prog} {' | '.join(verbs)} [--help]", "", *lines])


def _parse(cls: type[Config], argv: Sequence[str], prog: str) -> Config:
    """The config that flags make, or its help."""
    if asked := set(argv) & {*HELP, HELP_ALL}:
        from stablerep.flag_help import help_text

        _show(help_text(cls, prog, everything=HELP_ALL in asked))
        sys.exit(0)
    return parse(cls, argv, prog)


def _with_cache_folders(config: Any) -> Any:
    """The config with folders below the cache of the XDG convention, where none are given and the user has moved it."""
    cache = os.environ.get("XDG_CACHE_HOME")
    folders = {"engine_dir": "engines", "staging": "staging"} if cache else {}
    moved = {
        field: Path(f"{cache}/stablerep/{name}")
        for field, name in folders.items()
        if getattr(config, field, ...) is None
    }
    return dataclasses.replace(config, **moved)
