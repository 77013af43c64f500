"""stablerep-engine: build, list, verify and prune the store of engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from stablerep import distributed
from stablerep.config import UserError
from stablerep.engines.config import BuildConfig, ListConfig, PruneConfig, VerifyConfig
from stablerep.engines.parts import Part, parts_of
from stablerep.engines.select import BACKENDS, Unusable, build_part, load, rows_of, where
from stablerep.engines.store import Broken, Entry, store_at
from stablerep.generate.pipeline import DTYPES, open_pipeline


def build(config: BuildConfig) -> Iterator[str]:
    """Build both parts and verify them where they can run; a line each.

    Raises:
        UserError: the engine cannot be built here, or what was built is not what torch computes.
    """
    backend = BACKENDS[config.engine]
    if reason := backend.why_not_build():  # before the model is opened
        raise UserError(f"--engine {config.engine} cannot be built: {reason}")
    store, rows = store_at(config.engine_dir), rows_of(config.batch_size, config.guided)
    with distributed.start(config.device) as device:
        half = config.engine == "trt" or device.type == "cuda"
        dtype = DTYPES[("fp16" if half else "fp32") if config.dtype == "auto" else config.dtype]
        for name, part in parts_of(open_pipeline(config.model, device, dtype=dtype)).items():
            entry = build_part(config.engine, part, store, rows[name])
            if reason := why_not_here(entry, device):
                yield f"{_describe(entry)}: built, cannot run here: {reason}"
            else:
                yield _verified(part, entry, rows[name], again=False)


def listed(config: ListConfig) -> Iterator[str]:
    """A line an engine."""
    store = store_at(config.engine_dir)
    found = store.entries()
    with distributed.start(config.device) as device:
        for entry in found:
            yield f"{_describe(entry)}: {_state(entry, device)}"
    size = sum(entry.bytes for entry in found if isinstance(entry, Entry))
    yield f"{len(found)} engines, {_size(size)}, in {store.folder}"


def verify(config: VerifyConfig) -> Iterator[str]:
    """Compare the engines of one model with torch, a line each, and keep what was found beside them.

    Raises:
        UserError: at the end, if an engine differs from torch.
    """
    store, rows = store_at(config.engine_dir), rows_of(config.batch_size, True)
    failed = 0
    with distributed.start(config.device) as device:
        parts: dict[str, dict[str, Part]] = {}  # by dtype: an engine is compared with torch in its own
        for entry in store.entries():
            reason = why_not_here(entry, device)
            if isinstance(entry, Broken) or reason:
                yield f"{_describe(entry)}: cannot run here: {reason}"
                continue
            recipe = entry.recipe
            if recipe.dtype not in parts:
                parts[recipe.dtype] = parts_of(open_pipeline(config.model, device, dtype=DTYPES[recipe.dtype]))
            part = parts[recipe.dtype][recipe.part]
            if (part.weights_digest(), part.graph_digest()) != (recipe.weights, recipe.graph):
                yield f"{_describe(entry)}: of another model than --model {config.model}"
                continue
            try:
                yield _verified(part, entry, min(rows[part.name], recipe.most_rows or rows[part.name]), again=True)
            except UserError as error:
                failed += 1
                yield str(error)
    if failed:
        raise UserError(f"{failed} engines cannot be used; stablerep-engine prune removes them")


def prune(config: PruneConfig) -> Iterator[str]:
    """Remove what nothing here would open again, and what stopped builders left; a line each."""
    store = store_at(config.engine_dir)
    freed = 0
    for entry in store.entries():
        reason = "asked for" if config.everything else _why_prune(entry)
        if reason is None:
            continue
        freed += _bytes_of(entry)
        if not config.dry_run:
            store.discard(entry)
        yield f"{_describe(entry)}: {'would be ' if config.dry_run else ''}removed: {reason}"
    left_behind = [] if config.dry_run else store.remove_left_behind()
    yield from (f"{name}: left by a builder that was stopped, removed" for name in left_behind)
    yield f"{_size(freed)} {'would be ' if config.dry_run else ''}freed in {store.folder}"


RUN: dict[str, Callable[[Any], Iterator[str]]] = {"build": build, "list": listed, "verify": verify, "prune": prune}


def why_not_here(entry: Entry | Broken, device: torch.device) -> str | None:
    """Why an engine of the store would not be taken here."""
    if isinstance(entry, Broken):
        return entry.reason
    backend, recipe = BACKENDS[entry.recipe.engine], entry.recipe
    if reason := entry.damage(thorough=False) or backend.why_not(device, DTYPES[recipe.dtype]) or _stale(entry):
        return reason
    if recipe.gpu not in ("any", here := where(backend, device).split(", ")[0]):
        return f"built for {recipe.gpu}, this is {here}"
    return None


def _stale(entry: Entry) -> str | None:
    backend = BACKENDS[entry.recipe.engine]
    if backend.why_not_build() is None and entry.recipe.builder != (builder := backend.builder()):
        return f"built by {entry.recipe.builder}; here is {builder}"
    return None


def _why_prune(entry: Entry | Broken) -> str | None:
    if isinstance(entry, Broken):
        return entry.reason
    differs = [f"on {place}, {found['reason']}" for place, found in entry.verified.items() if not found["ok"]]
    return entry.damage(thorough=True) or _stale(entry) or (differs[0] if differs else None)


def _verified(part: Part, entry: Entry, rows: int, *, again: bool) -> str:
    backend = BACKENDS[entry.recipe.engine]
    try:
        _, entry = load(backend, part, entry, rows, verify_again=again)
    except Unusable as reason:
        raise UserError(f"{_describe(entry)}: {reason}") from None
    return f"{_describe(entry)}: {_result(entry.verified[where(backend, part.device)])}"


def _state(entry: Entry | Broken, device: torch.device) -> str:
    if reason := why_not_here(entry, device):
        return f"cannot run here: {reason}"
    assert isinstance(entry, Entry)
    found = entry.verified.get(where(BACKENDS[entry.recipe.engine], device))
    return _result(found) if found else "not verified yet; that happens on first use"


def _result(found: dict[str, Any]) -> str:
    if not found["ok"]:
        return str(found["reason"])
    times = f"{found['engine_ms']:g} ms for {found['rows']} rows, torch {found['torch_ms']:g} ms"
    return f"equals torch: cosine {found['cosine']:.6f}, largest error {found['max_error']:.2g}; {times}"


def _describe(entry: Entry | Broken) -> str:
    if isinstance(entry, Broken):
        return entry.folder.name
    recipe = entry.recipe
    rows = f"1 to {recipe.most_rows} rows" if recipe.most_rows else "any rows"
    gpu = "" if recipe.gpu == "any" else f", {recipe.gpu} ({recipe.compute_capability})"
    return (
        f"{entry.folder.name} ({recipe.dtype}, {rows}{gpu}, {_size(entry.bytes)}, built in {entry.build_seconds:g} s)"
    )


def _bytes_of(entry: Entry | Broken) -> int:
    return sum(path.stat().st_size for path in entry.folder.rglob("*") if path.is_file())


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
