"""From argv to a config, and what every command prints."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stablerep.config import Config, UserError, parse
from stablerep.storage import Folder, place

HELP, HELP_ALL = ("-h", "--help"), "--help-all"


def parse_flags(cls: type[Config], argv: Sequence[str], prog: str) -> Config:
    """The config that flags make, or its help."""
    if asked := set(argv) & {*HELP, HELP_ALL}:
        from stablerep.flag_help import help_text

        show(help_text(cls, prog, everything=HELP_ALL in asked))
        sys.exit(0)
    return parse(cls, argv, prog)


def take_folder(flag: str, argv: Sequence[str]) -> tuple[Folder | None, list[str]]:
    """The folder after a flag, or joined to it by =, and the other words."""
    for at, word in enumerate(argv):
        if word == flag or word.startswith(flag + "="):
            joined = [word[len(flag) + 1 :]] if "=" in word else list(argv[at + 1 : at + 2])
            if not joined or not joined[0] or joined[0].startswith("--"):
                raise UserError(f"{flag} needs the folder to look at: stablerep-gen {flag} OUT")
            return place(os.path.expanduser(joined[0])), [*argv[:at], *argv[at + (1 if "=" in word else 2) :]]
    return None, list(argv)


def with_cache_folders(config: Any) -> Any:
    """The config with folders below the cache of the XDG convention, where none are given and the user has moved it."""
    cache = os.environ.get("XDG_CACHE_HOME")
    folders = {"engine_dir": "engines", "staging": "staging"} if cache else {}
    moved = {
        field: Path(f"{cache}/stablerep/{name}")
        for field, name in folders.items()
        if getattr(config, field, ...) is None
    }
    return dataclasses.replace(config, **moved)


def usage(prog: str, verbs: Mapping[str, object]) -> str:
    lines = [f"  {verb:9}{(inspect.getdoc(what) or '').partition(chr(10))[0]}" for verb, what in verbs.items()]
    return "\n".join([f"usage: {prog} {' | '.join(verbs)} [--help]", "", *lines])


def show(text: str) -> None:
    """Print a page, of which `| head` may read the beginning alone."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
