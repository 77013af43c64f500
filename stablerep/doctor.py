"""`stablerep-doctor`: what is installed, what is missing, and the one line that mends it."""

from __future__ import annotations

import importlib.metadata
import platform

from stablerep import native

NEEDED = (
    "torch", "torchvision", "triton", "timm", "diffusers", "transformers", "safetensors", "nvidia-dali-cuda130",
    "pyarrow", "tensorboard",
)  # fmt: skip
TENSORRT = {"tensorrt-cu13": "trt", "tensorrt-rtx-cu13": "trt-rtx"}  # distribution -> our extra


def report() -> str:
    """A line for each dependency, then what is missing and how to mend it."""
    lines, mends = [f"python {platform.python_version()} on {platform.platform()}"], []
    versions = {name: _version(name) for name in NEEDED}
    lines += [f"{name} {version or 'is missing'}" for name, version in versions.items()]
    if missing := [name for name, version in versions.items() if version is None]:
        mends.append(f"pip install {' '.join(missing)}")

    flavours = [f"{name} {version}" for name in TENSORRT if (version := _version(name))]
    extras = " or ".join(f"`pip install 'stablerep[{extra}]'`" for extra in TENSORRT.values())
    lines.append(" and ".join(flavours) or f"no TensorRT; optional: {extras}")

    lines.append(_cuda())
    info = native.build_info()
    if info is None:
        reason = native.why_not("cpu") or ""
        lines.append(f"native code is missing: {reason}")
        mends.append("pip install .  # in the repository; needs a C++20 compiler")
    else:
        cuda = f"CUDA {info['cuda']} for {info['cuda_architectures']}" if info["cuda"] else "CPU only, no nvcc found"
        lines.append(f"native code {info['version']}: {info['compiler']}, OpenMP {info['openmp']}, {cuda}")
        if not info["cuda"] and _has_gpu():
            mends.append("install the CUDA toolkit, then run `pip install .` in the repository again")
    last = [f"mend: {mend}" for mend in mends] or ["nothing is missing"]
    return "\n".join([*lines, "", *last])


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _cuda() -> str:
    if not _has_gpu():
        return "no CUDA GPU; everything runs on the CPU"
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}: {', '.join(names)}"
