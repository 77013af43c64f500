"""`python -m benchmarks.resources` compiles every kernel for sm_80, sm_90 and sm_100 and prints what it takes.

No GPU is needed. A line is the most that any specialisation of a kernel takes; --all prints each. A spill, a register
that did not fit and went to memory, ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stablerep.ops.contrastive.launch import compile_cases
from stablerep.ops.impls import CompileCase

CSRC = Path(__file__).resolve().parent.parent / "csrc"
ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163, 90: 227, 100: 227}  # KiB that one block may use


@dataclass(frozen=True)
class Resources:
    kernel: str
    architecture: int
    registers: int  # of a thread
    shared: int  # bytes of a block
    spills: int  # bytes stored to and loaded from local memory

    @property
    def fits(self) -> bool:
        return self.spills == 0 and self.shared <= SHARED_LIMIT[self.architecture] * 1024


def of_triton(case: CompileCase, architecture: int) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(case.kernel, dict(case.signature), dict(case.constexprs), case.attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(compiled.asm["ptx"])
        target = re.search(r"\.target (\w+)", compiled.asm["ptx"])
        assert target
        ptxas = triton.knobs.nvidia.ptxas_blackwell if architecture >= 100 else triton.knobs.nvidia.ptxas
        command = [ptxas.path, "-v", f"-arch={target[1]}", str(ptx), "-o", str(Path(folder, "kernel.cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (found,) = _parse(report, architecture)
    return Resources(case.name, architecture, found.registers, compiled.metadata.shared, found.spills)


def of_cuda(source: Path, architecture: int, nvcc: str) -> list[Resources]:
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-cubin", "-std=c++17", "--fmad=false", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
        command += [str(source), "-o", str(Path(folder, "kernel.cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return list(_parse(report, architecture))


def _parse(report: str, architecture: int) -> Iterator[Resources]:
    """What `ptxas -v` says, a block of lines a kernel."""
    for block in re.split(r"Compiling entry function ", report)[1:]:
        name = re.match(r"'(\w+)'", block)
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", block)
        registers = re.search(r"Used (\d+) registers", block)
        shared = re.search(r"(\d+) bytes smem", block)
        assert name and registers and spills, block
        yield Resources(
            _readable(name[1]),
            architecture,
            int(registers[1]),
            int(shared[1]) if shared else 0,
            sum(int(b) for b in spills),
        )


def _readable(mangled: str) -> str:
    if not shutil.which("c++filt"):
        return mangled
    plain = subprocess.run(["c++filt", "-p", mangled], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"stablerep::|_GLOBAL__N_\w+::|\(anonymous namespace\)::", "", plain)


def all_resources(architectures: tuple[int, ...] = ARCHITECTURES, nvcc: str | None = None) -> list[Resources]:
    """Compile everything, two at a time; the CUDA kernels where there is an nvcc."""
    with ThreadPoolExecutor(2) as pool:
        cases = [(case, a) for case in compile_cases() for a in case.targets if a in architectures]
        jobs = [pool.submit(of_triton, case, a) for case, a in cases]
        found = [job.result() for job in jobs]
        if nvcc:
            sources = sorted(CSRC.glob("*.cu"))
            for rows in pool.map(lambda job: of_cuda(*job, nvcc), [(s, a) for s in sources for a in architectures]):
                found += rows
    return found


def most_of_each(rows: list[Resources]) -> list[tuple[Resources, int]]:
    """The most that the specialisations of a kernel for one data type take, and how many there are."""
    groups: dict[tuple[str, int], list[Resources]] = {}
    for row in rows:
        name = re.sub(r"(<.*)|( \w+=.*)", "", row.kernel)
        groups.setdefault((name, row.architecture), []).append(row)
    return [
        (
            Resources(*key, *(max(getattr(r, field) for r in group) for field in ("registers", "shared", "spills"))),
            len(group),
        )
        for key, group in groups.items()
    ]


def main() -> int:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="a line for each specialisation")
    parser.add_argument("--architecture", type=int, choices=ARCHITECTURES, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--triton", action="store_true", help="the Triton kernels alone")
    arguments = parser.parse_args()
    each, nvcc = arguments.all, None if arguments.triton else shutil.which("nvcc")
    rows = all_resources(tuple(arguments.architecture), nvcc)
    view = Table("kernel", "sm", "compiled", "registers", "shared KiB", "spilled bytes", box=SIMPLE_HEAD)
    for row, number in [(row, 1) for row in rows] if each else most_of_each(rows):
        numbers = (row.architecture, number, row.registers, f"{row.shared / 1024:.1f}", row.spills)
        view.add_row(row.kernel, *(str(n) for n in numbers), style=None if row.fits else "red")
    Console(width=None if sys.stdout.isatty() else 120).print(view)
    if not (nvcc or arguments.triton):
        print("nvcc is not on the PATH: the CUDA kernels were left out")
    return 0 if all(row.fits for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
