"""From --engine to an engine that runs: what is built is taken, what is not is built, nothing runs unverified."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stablerep.config import UserError
from stablerep.engines import Engine, PipelineModules, native, onnx, tensorrt
from stablerep.engines.conditioning import Conditioning
from stablerep.engines.module import CompiledModule, ModuleSpec, dtype_name, module_specs, verify
from stablerep.engines.store import EngineKey, Entry, Store, Verification
from stablerep.engines.torch import TorchEngine, torch_out_of_memory

NATIVE_ROWS = 16  # that it is verified and timed on
CLEAR_RATIO = 1.25

log = logging.getLogger("stablerep.generate")


class Backend(Protocol):
    """A library that engines are built for and kept in the store: the modules engines.onnx and engines.tensorrt."""

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why none of its engines can run there."""

    def why_not_build(self) -> str | None:
        """Why none can be built here."""

    def version(self) -> str:
        """What runs them."""

    def builder(self) -> str:
        """What builds them."""

    def engine_key(self, spec: ModuleSpec, most_rows: int) -> EngineKey: ...

    def build(self, spec: ModuleSpec, most_rows: int, folder: Path) -> None: ...

    @property
    def Runner(self) -> Callable[[Path, torch.dtype, torch.device, int], CompiledModule]:
        """Opens what build wrote into a folder, for up to so many rows."""


BACKENDS: dict[str, Backend] = {"onnx": onnx, "trt": tensorrt}


@dataclass(frozen=True)
class CompiledEngine:
    """A UNet and a VAE decoder that were compiled."""

    name: str
    run_unet: CompiledModule
    run_decoder: CompiledModule
    decoder_dtype: torch.dtype

    @property
    def why_not_capturable(self) -> str | None:
        return self.run_unet.why_not_capturable

    def unet(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        with torch_out_of_memory():
            return self.run_unet({"latents": latents, "timestep": timestep.reshape(1), **conditioning.inputs})

    def decode(self, latents: Tensor) -> Tensor:
        with torch_out_of_memory():
            return self.run_decoder({"latents": latents.to(self.decoder_dtype)})

    def with_own_context(self) -> CompiledEngine:
        unet, decoder = self.run_unet.with_own_context(), self.run_decoder.with_own_context()
        return dataclasses.replace(self, run_unet=unet, run_decoder=decoder)


def open_engine(
    name: str, pipeline: PipelineModules, store: Store, batch_size: int, *, guided: bool = True, compiled: bool = False
) -> Engine:
    """The engine called `torch`, `native`, `onnx`, `trt` or `auto` for batches of up to batch_size pictures.

    Builds what the store lacks and verifies what was not verified on this device. `auto` builds nothing, and says what
    it took and why.
    compiled: run torch through torch.compile.

    Raises:
        UserError: the engine cannot run or be built here, or what was built is not what torch computes.
    """
    if name == "torch":
        return TorchEngine(pipeline, compiled=compiled)
    specs = module_specs(pipeline)
    most_rows = most_rows_of(batch_size, guided)
    if name == "auto":
        return _auto(pipeline, specs, store, most_rows)
    if name == "native":
        return _native(specs, store, most_rows)[0]
    opened = {module: open_module(name, spec, store, most_rows[module])[0] for module, spec in specs.items()}
    return _compiled(name, specs, opened)


def most_rows_of(batch_size: int, guided: bool) -> dict[str, int]:
    """The most rows a module is given at once: guidance runs the UNet on two rows a picture."""
    return {"unet": batch_size * (2 if guided else 1), "vae_decoder": batch_size}


def open_module(kind: str, spec: ModuleSpec, store: Store, rows: int) -> tuple[CompiledModule, Entry]:
    """One module, verified, from the store if it is there and works, else built."""
    backend = BACKENDS[kind]
    if reason := backend.why_not(spec.device, spec.dtype):
        raise UserError(f"--engine {kind} cannot run: {reason}")
    if entry := store.find(backend.engine_key(spec, rows)):
        try:
            return load(backend, spec, entry, rows)
        except UnusableEngineError as reason:
            log.warning("engine %s cannot be used: %s; building it anew", entry.folder.name, reason)
            store.discard(entry)
    entry = build_module(kind, spec, store, rows)
    try:
        return load(backend, spec, entry, rows)
    except UnusableEngineError as reason:
        raise UserError(f"--engine {kind}: {spec.name} was built and cannot be used: {reason}") from None


def build_module(kind: str, spec: ModuleSpec, store: Store, rows: int) -> Entry:
    """One module from the store, built if it is not there; two processes that want the same build it once."""
    backend = BACKENDS[kind]
    if reason := backend.why_not_build():
        raise UserError(f"--engine {kind} cannot be built: {reason}")
    key = backend.engine_key(spec, rows)
    with store.lock(key.name):
        entry = store.find(key)
        if entry is not None and (damage := entry.damage(thorough=True)) is None:
            return entry
        if entry is not None:
            log.warning("engine %s cannot be used: %s; building it anew", entry.folder.name, damage)
            store.remove(entry.folder)
        log.info("building %s: %s in %s for --engine %s, once; kept in %s",
                 key.name, spec.name, key.dtype, kind, store.folder)  # fmt: skip
        return store.build(key, lambda folder: backend.build(spec, rows, folder))


class UnusableEngineError(Exception):
    """Why an engine of the store cannot be used here."""


def load(
    backend: Backend, spec: ModuleSpec, entry: Entry, rows: int, *, verify_again: bool = False
) -> tuple[CompiledModule, Entry]:
    """Open one engine and see to it that it was verified on this device.

    Raises:
        UnusableEngineError: damaged, of another GPU or version, or not what torch computes.
        UserError: it does not fit into the device's memory.
    """
    if damage := entry.damage(thorough=True):
        raise UnusableEngineError(damage)
    try:
        with torch_out_of_memory():
            run = backend.Runner(entry.folder, spec.dtype, spec.device, rows)
    except torch.OutOfMemoryError as error:
        raise _too_large(spec, rows) from error
    except UserError:
        raise
    except Exception as error:  # each library has its own kinds; each means that the file cannot be opened here
        raise UnusableEngineError(" ".join(str(error).split())[:300]) from error
    platform = platform_name(backend, spec.device)
    result = entry.verified.get(platform)
    if verify_again or result is None or not result.ok:
        try:
            with torch_out_of_memory():
                result = verify(spec, run, rows)
        except torch.OutOfMemoryError as error:
            raise _too_large(spec, rows) from error
        try:
            entry = entry.with_verified(platform, result)
        except OSError as error:  # a shared store, read-only for us: it is verified again next time
            log.info("what verifying %s said cannot be kept: %s", entry.folder.name, error.strerror)
            entry = dataclasses.replace(entry, verified=entry.verified | {platform: result})
    if not result.ok:
        raise UnusableEngineError(result.reason)
    return run, entry


def _too_large(spec: ModuleSpec, rows: int) -> UserError:
    device = device_name(spec.device)
    return UserError(
        f"{spec.name} for {rows} rows does not fit into the memory of {device}; take a smaller --batch-size"
    )


def platform_name(backend: Backend, device: torch.device) -> str:
    """What a verification holds for: a device and the library that ran there."""
    return f"{device_name(device)}, {backend.version()}"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _auto(pipeline: PipelineModules, specs: dict[str, ModuleSpec], store: Store, most_rows: dict[str, int]) -> Engine:
    """The first that runs and was measured ahead of torch: TensorRT on CUDA, our own or ONNX Runtime on the CPU."""
    device = specs["unet"].device
    passed_over = []
    for kind in ("trt",) if device.type == "cuda" else ("native", "onnx"):
        try:
            engine, found = (_native if kind == "native" else partial(_built, kind))(specs, store, most_rows)
        except UserError as error:
            passed_over.append(str(error))
            continue
        engine_ms, torch_ms = found.engine_ms or 0.0, found.torch_ms or 0.0
        times = f"{engine_ms:g} ms for a UNet step of {found.rows} rows, torch {torch_ms:g} ms"
        if engine_ms <= torch_ms:
            reasons = "".join(f"; {reason}" for reason in passed_over)
            log.info("engine auto on %s: %s, measured ahead (%s)%s", device_name(device), kind, times, reasons)
            return engine
        passed_over.append(f"{kind} was measured behind ({times})")
    log.info("engine auto on %s: torch; %s", device_name(device), "; ".join(passed_over))
    return TorchEngine(pipeline)


def _built(
    kind: str, specs: dict[str, ModuleSpec], store: Store, most_rows: dict[str, int]
) -> tuple[CompiledEngine, Verification]:
    """The engine if the store has it, and what verifying its UNet found."""
    backend, unet = BACKENDS[kind], specs["unet"]
    if reason := backend.why_not(unet.device, unet.dtype):
        raise UserError(reason)
    if not all(store.find(backend.engine_key(spec, most_rows[name])) for name, spec in specs.items()):
        # The default builds nothing: of a large model that would be minutes and gigabytes nobody asked for.
        raise UserError(f"{kind} is not built for this model and batch size; --engine {kind} builds it, once")
    opened, found = {}, {}
    for name, spec in specs.items():
        opened[name], entry = open_module(kind, spec, store, most_rows[name])
        # Without a result: a store that is read-only for us.
        found[name] = entry.verified.get(platform_name(backend, spec.device), Verification(ok=True))
    return _compiled(kind, specs, opened), found["unet"]


def _native(
    specs: dict[str, ModuleSpec], store: Store, most_rows: dict[str, int]
) -> tuple[CompiledEngine, Verification]:
    """Verified and timed on few rows, once for a model on a machine: it costs as much as painting ten pictures."""
    opened, found = {}, {}
    for name, spec in specs.items():
        opened[name] = native.open_module(spec)
        key = _measured_key(spec, min(most_rows[name], NATIVE_ROWS))
        if (known := store.measured(key)) is not None:
            found[name] = known
            continue
        found[name] = verify(spec, opened[name], key["rows"])
        if not found[name].ok:
            raise UserError(f"--engine native: its {name} cannot be used: {found[name].reason}")
        if _is_clear(found[name]):
            store.keep_measured(key, found[name])
    return _compiled("native", specs, opened), found["unet"]


def _measured_key(spec: ModuleSpec, rows: int) -> dict[str, Any]:
    """All that the native engine's numbers and its speed follow from."""
    return {
        "module": spec.name,
        "weights": spec.weights_digest(),
        "graph": spec.graph_digest(),
        "dtype": dtype_name(spec.dtype),
        "rows": rows,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "libraries": f"torch {torch.__version__}, diffusers {importlib.metadata.version('diffusers')}",
        "code": native.digest(),
    }


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.machine()


def _is_clear(found: Verification) -> bool:
    """Whether who is faster would be no other on a busier machine; what is not clear is measured again next time."""
    if not found.engine_ms or not found.torch_ms:
        return False
    return not 1 / CLEAR_RATIO < found.engine_ms / found.torch_ms < CLEAR_RATIO


def _compiled(kind: str, specs: dict[str, ModuleSpec], opened: dict[str, CompiledModule]) -> CompiledEngine:
    return CompiledEngine(kind, opened["unet"], opened["vae_decoder"], specs["vae_decoder"].dtype)
