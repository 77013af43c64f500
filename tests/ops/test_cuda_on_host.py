"""The CUDA kernels as host code under AddressSanitizer and UndefinedBehaviorSanitizer, against the host's own ops.

cuda_on_host/cuda_runtime.h says how. What only a GPU has is not seen here: its own rounding, and threads at once.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "cuda_on_host"
CSRC = Path(__file__).parents[2] / "csrc"
HOST = ("augment", "augment_draws", "augment_rows", "floats", "guided_step", "noise", "to_pixels")
CUDA = ("augment", "guided_step", "noise", "to_pixels")
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=cuda_shared"]
FLAGS = ["-std=c++20", "-O1", "-g1", "-fno-omit-frame-pointer", "-ffp-contract=off", "-Wno-psabi", *SANITIZED]
GXX = shutil.which("g++")
pytestmark = pytest.mark.skipif(GXX is None, reason="no g++")

LAUNCH = re.compile(r"(\w+(?:<[^<>;]*>)?)<<<(.*?)>>>\((.*?)\);", re.DOTALL)
DYNAMIC_SHARED = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")


def as_host_code(source: str) -> str:
    """What g++ takes: launches as calls, and the memory that a launch gives as a pointer to it."""

    def call(found: re.Match[str]) -> str:
        kernel, where, arguments = found.groups()
        name = re.match(r"\w+", kernel)
        return (
            f'cuda_on_host::launch("{name[0]}", reinterpret_cast<const void*>(&{kernel}), {where}, '
            f"[=] {{ {kernel}({arguments}); }});"
        )

    shared = r"\1* const \2 = static_cast<\1*>(cuda_on_host::dynamic_shared());"
    return DYNAMIC_SHARED.sub(shared, LAUNCH.sub(call, source))


def compile_one(name: str, folder: Path, change: tuple[str, str] | None = None) -> Path:
    """The object of a source; with (old, new) of one that says something else."""
    out = folder / f"{name}.o"
    command = [str(GXX), *FLAGS, f"-I{HERE}", f"-I{CSRC}", "-c", "-o", str(out)]
    if name.endswith(".cu"):
        source = (CSRC / name).read_text()
        if change:
            assert source.count(change[0]) == 1, change
            source = source.replace(*change)
        (folder / f"{name}.cpp").write_text(f'#line 1 "{CSRC / name}"\n{as_host_code(source)}')
        # Before all else, so that no header of the project is read without it.
        command += ["-D__CUDACC__", "-include", "cuda_runtime.h", str(folder / f"{name}.cpp")]
    else:
        command.append(str((HERE if (HERE / name).exists() else CSRC) / name))
    subprocess.run(command, check=True)
    return out


def link(objects: Iterable[Path], program: Path) -> Path:
    subprocess.run([str(GXX), *FLAGS, *map(str, objects), "-o", str(program)], check=True)
    return program


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cuda_on_host")
    names = [f"{name}.cpp" for name in HOST] + [f"{name}.cu" for name in CUDA] + ["cases.cpp", "launch.cpp"]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(partial(compile_one, folder=folder), names), strict=True))


def run(program: Path, op: str, number: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), op, "0", str(number)], capture_output=True, text=True, timeout=120)


def test_random_cases_have_the_results_of_the_host(objects: dict[str, Path], tmp_path: Path) -> None:
    program = link(objects.values(), tmp_path / "cases")
    for op, number in (("philox_normal", 60), ("guided_step", 100), ("to_pixels", 60), ("strong_augment", 60)):
        ended = run(program, op, number)
        assert ended.returncode == 0, f"{op}: {ended.stderr[-3000:]}"


@pytest.mark.parametrize(("name", "op", "old", "new", "said"), [
    ("noise.cu", "philox_normal", "if (rest > 3) row", "row", "heap-buffer-overflow"),
    ("to_pixels.cu", "to_pixels", "!is_written(call, b) || !inside", "!inside || !is_written(call, b)", "not all thre"),
    ("augment.cu", "strong_augment", "__syncthreads();  // the rows before are still read", "", "differs"),
])  # fmt: skip
def test_mistakes_are_seen(
    objects: dict[str, Path], tmp_path: Path, name: str, op: str, old: str, new: str, said: str
) -> None:
    wrong = {**objects, name: compile_one(name, tmp_path, (old, new))}
    ended = run(link(wrong.values(), tmp_path / "cases"), op, 60)
    assert ended.returncode != 0 and said in ended.stderr, ended.stderr[-3000:]
