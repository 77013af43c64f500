"""The console scripts: argv to config to one call. Errors a user can cause are one line, exit code 2.

The flags are read before the work is imported: diffusers and its like take seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import inspect
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stablerep import __version__
from stablerep.config import Config, UserError, check_choice, parse, print_completion
from stablerep.storage import Folder, place

BACK = "run the same command when its file system is back; nothing finished is lost"
OUT_OF_MEMORY_TEXTS = re.compile(
    r"(can't|cannot|failed to) allocate|not enough memory|out of memory|bad_alloc|failed to map segment"
    r"|can't start new thread",
    re.IGNORECASE,
)
MENDS = {
    errno.EIO: BACK,
    errno.ESTALE: BACK,
    errno.ENOTCONN: BACK,
    errno.ETIMEDOUT: BACK,
    errno.ENOSPC: "free some space and run the same command to go on; nothing finished is lost",
    errno.EDQUOT: "free some space and run the same command to go on; nothing finished is lost",
    errno.EACCES: "choose an --out you can write to",
    errno.EPERM: "choose an --out you can write to",
    errno.EROFS: "choose an --out you can write to",
    errno.ENOTDIR: "a file is in the way; choose another folder",
    errno.EEXIST: "a file is in the way; choose another folder",
    errno.ENAMETOOLONG: "choose a shorter --out",
}
HELP, HELP_ALL, COMPLETION = ("-h", "--help"), "--help-all", "--tyro-"
SHELLS = ("bash", "zsh", "tcsh", "fish")
MORE = """stablerep train is stablerep-train, and so on; --help of each says more.
--version says which version this is.

Completion (bash; zsh and fish alike): stablerep --tyro-print-completion bash \\
    > ~/.local/share/bash-completion/completions/stablerep"""
# Whose choices are the user's to know; engines and storage speak as generate.
SPOKEN = ("generate", "models", "data", "train")


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
            with _importing():
                from stablerep.generate.dry_run import estimate

            print(estimate(config))
            return
        with _importing():
            from stablerep.generate.run import generate

        summary = generate(config)
        print(summary)
        if summary.problem:
            print(f"stablerep-gen: {summary.problem}", file=sys.stderr)
            sys.exit(3)

    _command("stablerep-gen", run, argv)


def prompts(argv: Sequence[str] | None = None) -> None:
    """Make prompts of a list of classes."""

    def run(argv: Sequence[str]) -> None:
        from stablerep.prompts.config import PromptsConfig

        config = _parse(PromptsConfig, argv, "stablerep-prompts")
        from stablerep.prompts.writer import write_prompts

        print(write_prompts(config))

    _command("stablerep-prompts", run, argv)


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
        from stablerep.train.loop import train

        exported = train(config, open_online)
        from stablerep.train.summary import summarise

        if os.environ.get("RANK", "0") == "0":  # under torchrun every rank comes here
            print("\n".join([f"encoder in {exported}", *summarise(config.out)]))

    _command("stablerep-train", run, argv)


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

    _command("stablerep-eval", run, argv)


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

    _command("stablerep-engine", run, argv)


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

    _command("stablerep-doctor", run, argv)


COMMANDS: dict[str, Callable[[Sequence[str] | None], None]] = {
    "prompts": prompts, "gen": gen, "train": train, "eval": evaluate, "engine": engine, "doctor": doctor,
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
        _command("stablerep", run, argv)


def _show(text: str) -> None:
    """Print a page, of which `| head` may read the beginning alone."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again


def _configs() -> dict[str, Any]:
    """The flags of each command, for completion."""
    from stablerep.engines.config import COMMANDS as ENGINE
    from stablerep.evaluate.config import EvaluateConfig
    from stablerep.generate.config import GenerateConfig
    from stablerep.prompts.config import PromptsConfig
    from stablerep.train.config import TrainConfig

    flags = {"prompts": PromptsConfig, "gen": GenerateConfig, "train": TrainConfig, "eval": EvaluateConfig}
    doctor = dataclasses.make_dataclass("Doctor", [])
    return {**flags, "engine": ENGINE, "doctor": doctor}


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


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """For imports of seconds: what torch and diffusers bring stays to the end, and is not looked through for garbage.

    Importing what stablerep-gen needs took 5.8 s so, not 7.9, and the end of the process 0.3 s, not 1.8.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _spoken_log() -> Iterator[None]:
    """What commands say of their choices and of long waits, on stderr."""
    logs, handler = [logging.getLogger(f"stablerep.{room}") for room in SPOKEN], logging.StreamHandler()
    levels = [log.level for log in logs]
    for log in logs:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.removeHandler(handler)
            log.setLevel(level)


def _command(name: str, run: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> None:
    # Before torch loads OpenMP. Its threads spin for milliseconds by default and starve whoever shares the cores: two
    # trainings on two cores made 101 + 104 images/s, with this 295 + 292; one alone 573 and 536.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if argv is None and _address_space() is not None:
        _outlive(name)
    argv = sys.argv[1:] if argv is None else argv
    if list(argv) == ["--version"]:
        print(f"stablerep {__version__}")
        return
    try:
        if argv and argv[0] == f"{COMPLETION}print-completion":  # tyro asserts
            check_choice(argv[0], argv[1] if len(argv) > 1 else "", SHELLS)
        with _spoken_log():
            run(argv)
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if _ran_out_of_memory(error) or (isinstance(error, UserError) and _ran_out_of_memory(error.__cause__)):
            cause = error.__cause__ if isinstance(error, UserError) else error
            _stop(name, _memory_line(" ".join(str(cause).split())[:200]))
        if isinstance(error, UserError):
            _stop(name, str(error))
        if isinstance(error, OSError) and error.errno in MENDS:
            _stop(name, f"{error.strerror}: {error.filename or '--out'}; {MENDS[error.errno]}")
        raise


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says so, in the words of torch, of the loader of libraries, or of the system."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError | ImportError) and OUT_OF_MEMORY_TEXTS.search(str(error)) is not None
    )


def _memory_line(reason: str) -> str:
    """The last line of a command that had too little memory."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    has = f"the machine has {most / 1e9:.1f} GB"
    if (limit := _address_space()) is not None:
        has += f", and ulimit -v leaves {limit / 1e9:.1f} GB of addresses, of which libraries alone take about 4"
    return (
        f"out of memory ({reason or 'no more can be had'}); {has}: raise the limit, or take a smaller --batch-size or "
        "model; nothing finished is lost"
    )


def _address_space() -> int | None:
    """Bytes that a process may map (ulimit -v); None: as many as it likes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def _outlive(name: str) -> None:
    """Go on in a child, and say in its place why it died.

    A C++ library that gets no memory while it is loaded, or in a thread of its own, aborts the process: nothing in it
    can speak any more. Only where addresses are limited: elsewhere the system itself would have to kill us.
    """
    child = os.fork()
    if not child:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if -code in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):
        _stop(name, _memory_line(f"a library ended the process with {signal.Signals(-code).name}"))
    sys.exit(code if code >= 0 else 128 - code)


def _stop(name: str, message: str) -> None:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(2)
