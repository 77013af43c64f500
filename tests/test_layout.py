"""The layout of the house: arrows point down, each op has its test and its benchmark, importing is cheap."""

from __future__ import annotations

import ast
import graphlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stablerep"

BASE = {"atomic", "flag_help", "storage", "prompts", "run_folder", "shards", "config", "runlog", "distributed", "hub"}
LOW = BASE | {"native", "ops"}
PARTS = LOW | {"data", "models"}
# Room -> the rooms it may import. stablerep/__init__.py is the public face and hands on names of all of them.
ARROWS: dict[str, set[str]] = {
    **{room: {"atomic", "config"} for room in BASE},  # whole files, UserError
    "shards": {"atomic", "config", "run_folder", "storage"},
    "prompts": {"atomic", "config", "runlog", "distributed", "hub"},  # a command of its own
    "native": set(),
    "ops": BASE | {"native"},
    "data": LOW,
    "models": LOW,
    "engines": LOW,
    "generate": PARTS | {"engines"},
    "adapt": PARTS | {"engines"},
    "train": PARTS,
    "evaluate": PARTS,
    "export": PARTS | {"engines"},
    "search": PARTS | {"generate", "train", "evaluate"},
    "poc": PARTS | {"generate", "adapt", "train", "evaluate"},
    "report": PARTS | {"generate", "train", "evaluate", "__version__"},
    "doctor": LOW,
    "process": {"config", "__version__"},
    "cli": PARTS
    | {"process", "engines", "generate", "adapt", "train", "evaluate", "export", "search", "poc", "report", "doctor"},
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MOST_LINES = 400
SOURCES = sorted(
    path
    for folder in ("stablerep", "csrc", "tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".sh", ".h", ".cpp", ".cu"}
)


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_modules(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, at its top or in a function."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in ARROWS, f"stablerep/{room} has no place in the house; give it one in ARROWS"
    for module in imported_modules(path):
        name, *rest = module.split(".")
        if name != "stablerep":
            assert name not in {"tests", "benchmarks", "examples"}, f"{path.name} imports {module}"
            continue
        target = rest[0] if rest else "the public face"
        if target == "_native":
            assert path == PACKAGE / "native.py", f"{room} imports the compiled module; only native.py may"
        elif target != room:
            assert target in ARROWS[room], f"{room} must not import {module}"


def test_each_op_has_its_reference_test_and_benchmark() -> None:
    from stablerep import ops

    functions = {name: op for name, op in vars(ops).items() if inspect.isfunction(op)}
    homes = {op.__module__.split(".")[2] for op in functions.values()} | {"impls"}
    assert homes == {path.stem for path in (PACKAGE / "ops").iterdir() if not path.stem.startswith("__")}
    for home in homes:  # what a folder hands on, stablerep.ops does
        assert set(getattr(sys.modules[f"stablerep.ops.{home}"], "__all__", ())) <= set(ops.__all__)
    for name, op in functions.items():
        assert name in ops.__all__, f"stablerep.ops does not list {name}"
        reference = sys.modules[op.__module__].reference  # a function beside the op, or the folder's reference.py
        assert callable(reference) or callable(getattr(reference, name)), f"{op.__module__} has no reference of {name}"
        assert (ROOT / "tests" / "ops" / f"test_{name}.py").is_file()
        assert (ROOT / "benchmarks" / "ops" / f"test_{name}.py").is_file()


def file_of(module: str) -> Path | None:
    """The file of stablerep that an imported name is, or lies in."""
    path = ROOT.joinpath(*module.split("."))
    for candidate in (
        path.with_suffix(".py"),
        path / "__init__.py",
        path.parent.with_suffix(".py"),
        path.parent / "__init__.py",
    ):
        if candidate.is_file() and candidate.is_relative_to(PACKAGE) and candidate != PACKAGE / "__init__.py":
            return candidate
    return None


def test_no_circle_between_files() -> None:
    graph = {
        path: {file for module in imported_modules(path) if (file := file_of(module))} - {path}
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("these import each other: " + " <- ".join(str(path.relative_to(PACKAGE)) for path in error.args[1]))


def test_files_have_one_reason_to_exist() -> None:
    for path in SOURCES:
        names = path.relative_to(ROOT).with_suffix("").parts
        assert not FORBIDDEN_NAMES & set(names), f"{path.relative_to(ROOT)}: a name that says nothing"
        lines = path.read_bytes().count(b"\n")
        assert lines <= MOST_LINES, f"{path.relative_to(ROOT)} has {lines} lines; {MOST_LINES} is the end of the road"


def test_import_is_cheap() -> None:
    program = (  # processor time: a busy machine does not make it longer
        "import sys, time; start = time.process_time(); import stablerep; print(time.process_time() - start);"
        "print(*sorted({'torch', 'stablerep._native'} & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
        duration, loaded = run.stdout.split("\n")[:2]
        assert not loaded, f"import stablerep loads {loaded}"
        seconds.append(float(duration))
    assert min(seconds) < 0.3, f"import stablerep took {min(seconds):.2f} s at best"
