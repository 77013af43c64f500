"""From --engine to an engine that runs: what is built is taken, what is not is built, nothing runs unverified."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stablerep.config import UserError
from stablerep.engines import Engine, native, onnx, tensorrt
from stablerep.engines.memory import out_of_memory_is_torch_s
from stablerep.engines.parts import Part, parts_of
from stablerep.engines.store import Entry, Store
from stablerep.engines.torch import TorchEngine
from stablerep.engines.verify import Run, verify
from stablerep.generate.conditioning import Conditioning
from stablerep.generate.pipeline import Pipeline

BACKENDS: dict[str, Any] = {"onnx": onnx, "trt": tensorrt}  # the modules are alike: why_not, recipe, build, Runner
NATIVE_ROWS = 16  # that it is verified and timed on

log = logging.getLogger("stablerep.generate")


@dataclass(frozen=True)
class CompiledEngine:
    """A UNet and a VAE decoder that were compiled."""

    name: str
    run_unet: Run
    run_decoder: Run
    decoder_dtype: torch.dtype

    @property
    def why_not_capturable(self) -> str | None:
        return "ONNX Runtime keeps the order of its stream itself" if self.name == "onnx" else None

    def unet(self, latents: Tensor, timestep: Tensor, told: Conditioning) -> Tensor:
        with out_of_memory_is_torch_s():
            return self.run_unet({"latents": latents, "timestep": timestep.reshape(1), **told.inputs})

    def decode(self, latents: Tensor) -> Tensor:
        with out_of_memory_is_torch_s():
            return self.run_decoder({"latents": latents.to(self.decoder_dtype)})

    def with_own_context(self) -> CompiledEngine:
        """The same plans with working memory of their own, for a CUDA graph (TensorRT's alone can be captured)."""
        runs = {name: getattr(self, name).alone() for name in ("run_unet", "run_decoder")}
        return dataclasses.replace(self, **runs)


def open_engine(
    name: str, pipeline: Pipeline, store: Store, batch_size: int, *, guided: bool = True, compiled: bool = False
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
    parts = parts_of(pipeline)
    rows = rows_of(batch_size, guided)
    if name == "auto":
        return _auto(pipeline, parts, store, rows)
    if name == "native":
        return _native(parts, rows)[0]
    return _engine(name, parts, {part: open_part(name, parts[part], store, rows[part]) for part in parts})


def rows_of(batch_size: int, guided: bool) -> dict[str, int]:
    """The most rows a part is given at once: guidance runs the UNet on two rows a picture."""
    return {"unet": batch_size * (2 if guided else 1), "vae_decoder": batch_size}


def open_part(kind: str, part: Part, store: Store, rows: int) -> tuple[Run, Entry]:
    """One part, verified, from the store if it is there and works, else built."""
    backend = BACKENDS[kind]
    if reason := backend.why_not(part.device, part.dtype):
        raise UserError(f"--engine {kind} cannot run: {reason}")
    recipe = backend.recipe(part, rows)
    if entry := store.find(recipe):
        try:
            return load(backend, part, entry, rows)
        except Unusable as reason:
            log.warning("engine %s cannot be used: %s; building it anew", entry.folder.name, reason)
            store.discard(entry)
    entry = build_part(kind, part, store, rows)
    try:
        return load(backend, part, entry, rows)
    except Unusable as reason:
        raise UserError(f"--engine {kind}: {part.name} was built and cannot be used: {reason}") from None


def build_part(kind: str, part: Part, store: Store, rows: int) -> Entry:
    """One part from the store, built if it is not there; two processes that want the same build it once."""
    backend = BACKENDS[kind]
    if reason := backend.why_not_build():
        raise UserError(f"--engine {kind} cannot be built: {reason}")
    recipe = backend.recipe(part, rows)
    with store.lock(recipe.name):
        entry = store.find(recipe)
        if entry is not None and (damage := entry.damage(thorough=True)) is None:
            return entry
        if entry is not None:
            log.warning("engine %s cannot be used: %s; building it anew", entry.folder.name, damage)
            store.remove(entry.folder)
        log.info("building %s: %s in %s for --engine %s, once; kept in %s",
                 recipe.name, part.name, recipe.dtype, kind, store.folder)  # fmt: skip
        return store.build(recipe, lambda folder: backend.build(part, rows, folder))


class Unusable(Exception):
    """Why an engine of the store cannot be used here."""


def load(backend: Any, part: Part, entry: Entry, rows: int, *, verify_again: bool = False) -> tuple[Run, Entry]:
    """Open one engine and see to it that it was verified on this device.

    Raises:
        Unusable: damaged, of another GPU or version, or not what torch computes.
        UserError: it does not fit into the device's memory.
    """
    if damage := entry.damage(thorough=True):
        raise Unusable(damage)
    try:
        with out_of_memory_is_torch_s():
            run = backend.Runner(entry.folder, part.dtype, part.device, rows)
    except torch.OutOfMemoryError as error:
        raise _too_large(part, rows) from error
    except UserError:
        raise
    except Exception as error:  # each library has its own kinds; each means that the file cannot be opened here
        raise Unusable(" ".join(str(error).split())[:300]) from error
    place = where(backend, part.device)
    result = entry.verified.get(place)
    if verify_again or result is None or not result["ok"]:
        try:
            with out_of_memory_is_torch_s():
                result = verify(part, run, rows)
        except torch.OutOfMemoryError as error:
            raise _too_large(part, rows) from error
        try:
            entry = entry.with_verified(place, result)
        except OSError as error:  # a shared store, read-only for us: it is verified again next time
            log.info("what verifying %s said cannot be kept: %s", entry.folder.name, error.strerror)
    if not result["ok"]:
        raise Unusable(result["reason"])
    return run, entry


def _too_large(part: Part, rows: int) -> UserError:
    place = device_name(part.device)
    return UserError(
        f"{part.name} for {rows} rows does not fit into the memory of {place}; take a smaller --batch-size"
    )


def where(backend: Any, device: torch.device) -> str:
    """What a verification holds for: a device and the library that ran there."""
    return f"{device_name(device)}, {backend.version()}"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _auto(pipeline: Pipeline, parts: dict[str, Part], store: Store, rows: dict[str, int]) -> Engine:
    """The first that runs and was measured ahead of torch: TensorRT on CUDA, our own or ONNX Runtime on the CPU."""
    device = parts["unet"].device
    passed_over = []
    for kind in ("trt",) if device.type == "cuda" else ("native", "onnx"):
        try:
            engine, found = _measured(kind, parts, store, rows)
        except UserError as error:
            passed_over.append(str(error))
            continue
        ours, torchs = found.get("engine_ms", 0.0), found.get("torch_ms", 0.0)
        times = f"{ours:g} ms for a UNet step of {found.get('rows')} rows, torch {torchs:g} ms"
        if ours <= torchs:
            said = "".join(f"; {reason}" for reason in passed_over)
            log.info("engine auto on %s: %s, measured ahead (%s)%s", device_name(device), kind, times, said)
            return engine
        passed_over.append(f"{kind} was measured behind ({times})")
    log.info("engine auto on %s: torch; %s", device_name(device), "; ".join(passed_over))
    return TorchEngine(pipeline)


def _measured(
    kind: str, parts: dict[str, Part], store: Store, rows: dict[str, int]
) -> tuple[CompiledEngine, dict[str, Any]]:
    """An engine, and what verifying its UNet found."""
    if kind == "native":
        return _native(parts, rows)
    backend, unet = BACKENDS[kind], parts["unet"]
    if reason := backend.why_not(unet.device, unet.dtype):
        raise UserError(reason)
    if not all(store.find(backend.recipe(part, rows[name])) for name, part in parts.items()):
        # The default builds nothing: of a large model that would be minutes and gigabytes nobody asked for.
        raise UserError(f"{kind} is not built for this model and batch size; --engine {kind} builds it, once")
    opened = {name: open_part(kind, part, store, rows[name]) for name, part in parts.items()}
    return _engine(kind, parts, opened), opened["unet"][1].verified.get(where(backend, unet.device), {})


def _native(parts: dict[str, Part], rows: dict[str, int]) -> tuple[CompiledEngine, dict[str, Any]]:
    """There is nothing to build and to keep, so it is verified each time, on few rows."""
    runs, found = {}, {}
    for name, part in parts.items():
        runs[name] = native.open_part(part)
        found[name] = verify(part, runs[name], min(rows[name], NATIVE_ROWS))
        if not found[name]["ok"]:
            raise UserError(f"--engine native: its {name} cannot be used: {found[name]['reason']}")
    return CompiledEngine("native", runs["unet"], runs["vae_decoder"], torch.float32), found["unet"]


def _engine(kind: str, parts: dict[str, Part], opened: dict[str, tuple[Run, Entry]]) -> CompiledEngine:
    return CompiledEngine(kind, opened["unet"][0], opened["vae_decoder"][0], parts["vae_decoder"].dtype)
