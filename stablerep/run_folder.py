"""The folder of a run: whose it is, and whether the run that is asked for may go on there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stablerep import config as configs
from stablerep.config import UserError, flag_of

CONFIG = "config.yaml"
MEND = "choose another --out, or the same value to go on"

Config = TypeVar("Config")


def read_config(cls: type[Config], out: Path, what: str) -> Config | None:
    """The config of the run that `out` holds; None where it holds none.

    what is how a line names such a run: "evaluation".

    Raises:
        UserError: the config of another command.
    """
    path = out / CONFIG
    try:
        return configs.load(cls, path) if path.exists() else None
    except (UserError, TypeError) as error:
        raise UserError(f"--out {out} holds another run, no {what}; choose another --out") from error


def check_same_run(out: Path, earlier: Config | None, config: Config, free: Collection[str], mend: str = MEND) -> None:
    """Raise a UserError unless `config` may go on in `out`, which holds the run `earlier`, or none.

    free are the fields that may differ: where a run is, what it runs on, what it leaves behind; not what it computes.
    mend is what the user can do where others differ.
    """
    if earlier is not None:
        kept, asked = (
            {name: value for name, value in configs.to_dict(each).items() if name not in free}
            for each in (earlier, config)
        )
        refuse_other_run(out, kept, asked, mend)
    else:
        configs.check_folder("--out", out)


def refuse_other_run(out: object, earlier: dict[str, Any], now: dict[str, Any], mend: str = MEND) -> None:
    """Raise a UserError that names the first difference between a folder's config and the one asked for."""
    for name in sorted(earlier.keys() | now.keys()):
        if earlier.get(name) != now.get(name):
            theirs, ours = (repr(run[name]) if name in run else "the default" for run in (earlier, now))
            raise UserError(f"--out {out} holds another run: its {flag_of(name)} is {theirs}, not {ours}; {mend}")


def refuse_foreign_files(out: object, names: Sequence[str]) -> None:
    """Raise a UserError that names the first of the files that no run of ours has left."""
    if names:
        raise UserError(f"--out {out} holds files that are no run of ours ({min(names)}, ...); choose an empty folder")
