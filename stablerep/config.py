"""Configs: a frozen dataclass becomes the flags of a command, a YAML file, and a fingerprint."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import operator
import os
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml

from stablerep import atomic

Config = TypeVar("Config")
T = TypeVar("T")

FIRST_LOOK = "first look"
# Around the type of a field: a flag that `--help` shows; `--help-all` shows the others too. Their headings stand
# between the fields of a config, as class variables: `OPTIMISER: ClassVar = "Optimiser"`.
FirstLook = Annotated[T, FIRST_LOOK]

MOST_NAMED = 20  # choices in one line


class UserError(Exception):
    """A mistake the user can fix: one line that names the flag, the value and the way out."""


def check_choice(flag: str, value: str, choices: Collection[str]) -> None:
    """Raise a UserError unless value is one of `choices`. It names the nearest and all of them; of many, three."""
    if value in choices:
        return
    many = len(choices) > MOST_NAMED
    near = nearest(value, choices)[: 3 if many else 1]
    hint = f"did you mean {either(near)}?" if near else "nothing like it is known" if many else "there is"
    known = "" if many else f" (known: {', '.join(sorted(choices))})"
    raise UserError(f"{flag} {value!r} is unknown; {hint}{known}")


def nearest(value: str, choices: Collection[str]) -> list[str]:
    """The choices that value may have been meant for, the likeliest first; none where nothing is like it."""
    short_for = sorted((choice for choice in choices if _abbreviates(value, choice)), key=len)
    return list(dict.fromkeys([*short_for[:1], *difflib.get_close_matches(value, choices, n=3, cutoff=0.4)]))


def either(names: Sequence[str]) -> str:
    """`a, b or c`"""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def check_at_least(config: Any, **lowest: float) -> None:
    """Raise a UserError for the first of these fields that is below its lowest value; None is no value."""
    for name, low in lowest.items():
        if (value := getattr(config, name)) is not None and value < low:
            raise UserError(f"{flag_of(name)} must be at least {low}, got {value}")


def check_folder(flag: str, folder: Path) -> None:
    """Raise a UserError if folder, or what it would lie in, is a file."""
    place = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if place.exists() and not place.is_dir():
        what = "is a file" if place == folder else f"lies below {place}, which is a file"
        raise UserError(f"{flag} {folder} {what}; choose a folder")


def check_above_zero(config: Any, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise UserError(f"{flag_of(name)} must be above 0, got {getattr(config, name)}")


def parse_share(flag: str, value: str | float) -> float:
    """A share from 0 to 1, as 0.05 or 5%."""
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise UserError(f"{flag} must be a share from 0 to 1, as 0.05 or 5%, got {value}")
    return share


def flag_of(field: str) -> str:
    return "--" + field.replace("_", "-")


def _abbreviates(value: str, choice: str) -> bool:
    """Whether value is choice with letters left out: dpm++ is nearer to dpmsolver++ than to dpm2."""
    letters = iter(choice)
    return len(value) > 2 and all(letter in letters for letter in value)


def parse(
    cls: type[Config], argv: Sequence[str], prog: str, base: dict[str, Any] | None = None, base_path: Path = Path()
) -> Config:
    """Build a config from flags, over the fields of `--config FILE.yaml` where that is given.

    base are fields from elsewhere (base_path), which flags win over too.

    Raises:
        UserError: a config file that cannot be read, or a value the config refuses.
        SystemExit: an unknown flag (tyro prints which, and the nearest known), or --help.
    """
    import tyro  # 0.2 s: only commands pay for it

    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if base:
        argv = _flags(cls, base, base_path, skip={word.split("=")[0] for word in argv}) + argv
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise UserError("--config needs the path of a YAML file")
        given = {word.split("=")[0] for word in argv}
        path = _config_file(cls, argv[at + 1])
        argv[at : at + 2] = _flags(cls, _read(path), path, skip=given)
    fields: Any = tyro.cli(
        with_help(cls),
        args=_gather(cls, argv),
        prog=prog,
        description=f"{(cls.__doc__ or '').strip()}\n\n--config FILE.yaml: read the fields from there; flags win.",
    )
    return from_fields(cls, vars(fields))


def print_completion(prog: str, commands: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Carry out --tyro-print-completion SHELL of a command that has commands of its own.

    commands: the config of each, or again the commands of one.
    """
    import tyro

    def choice(commands: Mapping[str, Any]) -> Any:
        kinds = []
        for name, what in commands.items():
            if isinstance(what, Mapping):
                kind: Any = dataclasses.make_dataclass(name, [("command", choice(what))])
            else:
                kind = with_help(what)
            kinds.append(operator.getitem(typing.Annotated, (kind, tyro.conf.subcommand(name, prefix_name=False))))
        return operator.getitem(typing.Union, tuple(kinds))

    tyro.cli(choice(commands), prog=prog, args=argv)


def with_help(cls: type[Config]) -> type:
    """The fields of a config, each with its docstring in one line: tyro would keep the breaks of the source's lines."""
    import tyro

    fields: list[Any] = []
    for owner, field in flat_fields(cls):
        help_text = tyro.conf.arg(help=docstrings(owner).get(field.name, ""))
        kind = operator.getitem(
            typing.Annotated, (typing.get_type_hints(owner, include_extras=True)[field.name], help_text)
        )
        default: Any = {"default": field.default, "default_factory": field.default_factory}
        fields.append((field.name, kind, dataclasses.field(**default)))
    return dataclasses.make_dataclass(cls.__name__, fields, kw_only=True)


@lru_cache
def docstrings(cls: type) -> dict[str, str]:
    """The help of each field in one line."""
    import docstring_parser

    params = docstring_parser.parse_from_object(cls).params
    return {param.arg_name: " ".join((param.description or "").split()) for param in params}


def inner_configs(cls: type) -> dict[str, type]:
    """The fields that are configs themselves. Their flags and YAML fields are those of the outer config."""
    kinds: dict[str, Any] = typing.get_type_hints(cls)
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


def flat_fields(cls: type) -> Iterator[tuple[type, dataclasses.Field[Any]]]:
    """Each field that is a flag, and the class it stands in."""
    inner = inner_configs(cls)
    for field in dataclasses.fields(cls):
        if field.name in inner:
            yield from flat_fields(inner[field.name])
        else:
            yield cls, field


def from_fields(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """A config from a value for each flag, those of its inner configs too; ~ in paths is the user's home.

    Flags, YAML files and the functions of `stablerep` all come by here, so a path means the same in each.
    """
    outer = {name: _at_home(value) for name, value in values.items()}
    for name, inner in inner_configs(cls).items():
        flags = {field.name for _, field in flat_fields(inner)} & outer.keys()
        if flags or name not in outer:
            outer[name] = from_fields(inner, {flag: outer.pop(flag) for flag in flags})
    return cls(**outer)


def _at_home(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_at_home(item) for item in value)
    if isinstance(value, str | Path) and (str(value) == "~" or str(value).startswith("~/")):
        return type(value)(os.path.expanduser(value))
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain YAML types by flag, in the order of its fields."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values |= to_dict(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return json.loads(json.dumps(values, default=str))  # tuples to lists, paths to text


def save(config: Any, path: Path) -> None:
    """Write a config as YAML, whole or not at all."""
    atomic.write(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def load(cls: type[Config], path: Path) -> Config:
    """Read what `save` wrote."""
    values = _read(path)
    _check_fields(cls, values, path)
    return from_fields(
        cls, {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )


def fingerprint(values: Any) -> str:
    """Twelve hex digits that change with any field of a config or value of a dict."""
    if dataclasses.is_dataclass(values):
        values = to_dict(values)
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _gather(cls: type, argv: Sequence[str]) -> list[str]:
    """Put the values of a field that takes many behind one flag: `--data A --data B` means `--data A B`."""
    many = {flag_of(field.name) for _, field in flat_fields(cls) if "tuple[" in str(field.type)}
    others: list[str] = []
    values: dict[str, list[str]] = {}
    taker = others
    for word in argv:
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        if flag in many:
            taker = values.setdefault(flag, [])
            taker += [value] if equals else []
            continue
        if word == "-h" or word.startswith("--"):
            taker = others
        taker.append(word)
    return others + [word for flag, words in values.items() for word in (flag, *words)]


def presets(cls: type) -> dict[str, Path]:
    """The YAML files that come with a config, by the name that --config takes: those of the folder cls.PRESETS."""
    folder: Path | None = getattr(cls, "PRESETS", None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def _config_file(cls: type, text: str) -> Path:
    """A path, or one of the presets; a file of that name goes first."""
    path, known = Path(text).expanduser(), presets(cls)
    if known and not path.exists() and path.name == text and not path.suffix:
        check_choice("--config", text, known)
        return known[text]
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold one mapping of field: value")
    return values


def _check_fields(cls: type, values: dict[str, Any], path: Path) -> None:
    names = [field.name for _, field in flat_fields(cls)]
    for name in values:
        check_choice(f"{path}: field", name, names)


def _flags(cls: type, values: dict[str, Any], path: Path, skip: set[str]) -> list[str]:
    """Fields of a YAML file as the flags that would set them, less those given on the command line."""
    values = {name.replace("-", "_"): value for name, value in values.items()}
    _check_fields(cls, values, path)
    flags = []
    for name, value in values.items():
        flag = flag_of(name)
        no_flag = flag_of(f"no_{name}")
        if value is None or flag in skip or no_flag in skip:
            continue
        if isinstance(value, bool):
            flags.append(flag if value else no_flag)
            continue
        for item in value if isinstance(value, list) else [value]:
            flags += [flag, str(item)]
    return flags
