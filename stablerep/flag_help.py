"""The help of a command: the flags that matter first, or all, as wide as the terminal, without importing the parser."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from stablerep.config import FIRST_LOOK, docstrings, flag_of, inner_configs, presets

LEFT, WIDEST = 29, 100  # columns of the flags, and of all: longer lines are hard to read
NAMES = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}


@dataclass(frozen=True)
class Flag:
    """A field, as the help shows it."""

    heading: str | None
    left: str
    text: str
    default: str
    is_first_look: bool


def help_text(cls: type, prog: str, *, everything: bool) -> str:
    """What --help prints; with everything, what --help-all does. A config that marks no FirstLook shows all at once."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    flags = list(_flags(cls))
    first = [flag for flag in flags if flag.is_first_look]
    shown = flags if everything or not first else first
    brief = len(shown) < len(flags)
    about = [_fill(part, width) for part in (inspect.getdoc(cls) or "").split("\n\n")]
    lines = [f"usage: {prog} [flags]", "", "\n\n".join(about)]
    heading: str | None = ""
    for flag in shown:
        if flag.heading != heading:
            lines += ["", f"{flag.heading or 'Flags'}:"]
            heading = flag.heading
        text = _first_sentence(flag.text) if brief else flag.text
        lines.append(_entry(flag.left, f"{text} {flag.default}".strip(), width))
    known = presets(cls)
    or_preset = f" Or one that comes with it: {', '.join(known)}." if known else ""
    lines += ["", _entry("--config FILE.yaml", f"Read the fields from there; flags win.{or_preset}", width)]
    if brief:
        lines.append(_entry("--help-all", f"All {len(flags)} flags, and more on these.", width))
    lines.append(_entry("--tyro-print-completion SHELL", "Print a completion script for bash, zsh or fish.", width))
    return "\n".join(lines)


def _fill(text: str, width: int) -> str:
    return textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False)


def _first_sentence(text: str) -> str:
    """Up to the first full stop or semicolon that stands outside brackets."""
    for end in re.finditer(r"[.;] ", text):
        before = text[: end.start()]
        if before.count("(") == before.count(")"):
            return before + "."
    return text


def _entry(left: str, text: str, width: int) -> str:
    """A flag and what it means; a long flag has a line of its own."""
    body = textwrap.wrap(text, width - LEFT - 1, break_on_hyphens=False) or [""]
    start = f"  {left}".ljust(LEFT)
    rest = [" " * (LEFT + 1) + line for line in body]
    return "\n".join([f"{start} {body[0]}", *rest[1:]] if len(start) <= LEFT else [start, *rest])


def _flags(cls: type, heading: str | None = None) -> Iterator[Flag]:
    """The flags of a config in the order of its fields, those of inner configs in their place."""
    inner, fields = inner_configs(cls), {field.name: field for field in dataclasses.fields(cls)}
    kinds = typing.get_type_hints(cls, include_extras=True)
    for name in inspect.get_annotations(cls):
        if name in inner:
            yield from _flags(inner[name], heading)
        elif name in fields:
            kind, text = kinds[name], docstrings(cls).get(name, "")
            marks = kind.__metadata__ if typing.get_origin(kind) is Annotated else ()
            left = _left(name, kind, fields[name].default)
            yield Flag(heading, left, text, _default(fields[name]), FIRST_LOOK in marks)
        else:
            heading = getattr(cls, name)  # a class variable between the fields


def _left(name: str, kind: Any, default: Any) -> str:
    if typing.get_origin(kind) is Annotated:
        kind = kind.__origin__
    if kind is bool:
        return flag_of(f"[no-]{name}" if default else name)
    return f"{flag_of(name)} {list(_words(kind))[-1]}"  # of `str | Path` the path


def _words(kind: Any) -> Iterator[str]:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [part for part in typing.get_args(kind) if part is not type(None)]
        many = [part for part in kinds if typing.get_origin(part) is tuple]
        for part in many or kinds:  # one value of `float | tuple[float, ...]` is a tuple of one
            yield from _words(part)
    elif origin is tuple:
        yield f"{NAMES[typing.get_args(kind)[0]]} ..."
    else:
        yield NAMES[kind]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "(required)"
    value = field.default
    if value is None or value is False or value in ("", ()):
        return ""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return f"(default: {'on' if value is True else value})"
