"""`make gpu-pack`: what a GPU machine without network lacks, as one folder to carry there beside the checkout.

Wheels (gpu_pack.txt), and the extension as this machine's nvcc compiles it for one GPU and one Python: it then costs
no second there. `make gpu-check PACK=folder` puts it to use.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks.checks import ROOT

WHEELS = Path(__file__).with_suffix(".txt")
MOST_MIB = 60  # with the checkout, which is carried too


def pack(out: Path, python: str, architecture: str) -> None:
    """Make the folder anew.

    Raises:
        SystemExit: something cannot be had or built, or it is too large; in one line.
    """
    question = "import sys, sysconfig; print('%d.%d' % sys.version_info[:2], sysconfig.get_config_var('EXT_SUFFIX'))"
    version, suffix = _output([python, "-c", question], f"--python {python}").split()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    _output([*download, "--python-version", version, "-d", str(out), "-r", str(WHEELS)], f"the wheels of {WHEELS.name}")
    _extension(out, python, architecture, f"_native{suffix}")
    _check_size(out)


def _extension(out: Path, python: str, architecture: str, name: str) -> None:
    """The extension alone, out of a wheel of this checkout: all else of it is carried as it is."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"STABLEREP_CUDA": "ON", "STABLEREP_CUDA_ARCHITECTURES": architecture}
        defines = [part for name, value in settings.items() for part in ("-C", f"cmake.define.{name}={value}")]
        build = [python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, *defines, str(ROOT)]
        _output(build, f"the extension for Python of {python} and {architecture}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (out / name).write_bytes(archive.read(f"stablerep/{name}"))


def _check_size(out: Path) -> None:
    files = sorted(out.iterdir(), key=lambda file: -file.stat().st_size)
    tracked = _output(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"], "git")
    checkout = sum((ROOT / name).stat().st_size for name in tracked.split("\0") if name and (ROOT / name).is_file())
    total = (sum(file.stat().st_size for file in files) + checkout) / 2**20
    for file in files:
        print(f"{file.stat().st_size / 2**20:6.1f} MiB  {file.name}")
    print(f"{checkout / 2**20:6.1f} MiB  the checkout")
    if total > MOST_MIB:
        raise SystemExit(f"gpu-pack: {out} and the checkout are {total:.1f} MiB, more than {MOST_MIB}")
    print(f"{total:6.1f} MiB  in all, of {MOST_MIB}; make gpu-check PACK={out}")


def _output(command: list[str], what: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except OSError as error:
        raise SystemExit(f"gpu-pack: {what}: {error}") from None
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()] or ["it says nothing"]
        wrong = next((line for line in reversed(said) if "error" in line.lower()), said[0])
        raise SystemExit(f"gpu-pack: {what} cannot be had: {wrong.strip()[:300]}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu-pack"))
    parser.add_argument("--python", default="python3.12", help="of the same version as on that machine")
    parser.add_argument("--architecture", default="90-real", help="of its GPU, as CMake names it")
    arguments = parser.parse_args()
    pack(arguments.out, arguments.python, arguments.architecture)


if __name__ == "__main__":
    main()
