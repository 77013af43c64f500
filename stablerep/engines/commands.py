"""stablerep-engine: build, list, verify and prune the store of engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from stablerep import distributed
from stablerep.config import UserError
from stablerep.engines import PipelineModules
from stablerep.engines.config import BuildConfig, ListConfig, PruneConfig, VerifyConfig
from stablerep.engines.module import DTYPES, ModuleSpec, module_specs
from stablerep.engines.select import BACKENDS, UnusableEngineError, build_module, load, most_rows_of, platform_name
from stablerep.engines.store import BrokenEntry, Entry, Verification, store_at

OpenPipeline = Callable[[str, torch.device, torch.dtype], PipelineModules]  # of --model


def run(config: BuildConfig | ListConfig | VerifyConfig | PruneConfig, open_pipeline: OpenPipeline) -> Iterator[str]:
    """What a command has to say, line by line. Pipelines are opened above engines, so the opener is handed in."""
    match config:
        case BuildConfig():
            return build(config, open_pipeline)
        case VerifyConfig():
            return verify(config, open_pipeline)
        case ListConfig():
            return list_entries(config)
        case PruneConfig():
            return prune(config)


def build(config: BuildConfig, open_pipeline: OpenPipeline) -> Iterator[str]:
    """Build both modules and verify them where they can run; a line each.

    Raises:
        UserError: the engine cannot be built here, or what was built is not what torch computes.
    """
    backend = BACKENDS[config.engine]
    if reason := backend.why_not_build():  # before the model is opened
        raise UserError(f"--engine {config.engine} cannot be built: {reason}")
    store, most_rows = store_at(config.engine_dir), most_rows_of(config.batch_size, config.guided)
    with distributed.start(config.device) as device:
        half = config.engine == "trt" or device.type == "cuda"
        dtype = DTYPES[("fp16" if half else "fp32") if config.dtype == "auto" else config.dtype]
        for name, spec in module_specs(open_pipeline(config.model, device, dtype)).items():
            entry = build_module(config.engine, spec, store, most_rows[name])
            if reason := why_not_here(entry, device):
                yield f"{_describe(entry)}: built, cannot run here: {reason}"
            else:
                yield _verified(spec, entry, most_rows[name], again=False)


def list_entries(config: ListConfig) -> Iterator[str]:
    """A line an engine."""
    store = store_at(config.engine_dir)
    found = store.entries()
    with distributed.start(config.device) as device:
        for entry in found:
            yield f"{_describe(entry)}: {_state(entry, device)}"
    size = sum(entry.bytes for entry in found if isinstance(entry, Entry))
    yield f"{len(found)} engines, {_size(size)}, in {store.folder}"


def verify(config: VerifyConfig, open_pipeline: OpenPipeline) -> Iterator[str]:
    """Compare the engines of one model with torch, a line each, and keep what was found beside them.

    Raises:
        UserError: at the end, if an engine differs from torch.
    """
    store, most_rows = store_at(config.engine_dir), most_rows_of(config.batch_size, True)
    failed = 0
    with distributed.start(config.device) as device:
        specs: dict[str, dict[str, ModuleSpec]] = {}  # by dtype: an engine is compared with torch in its own
        for entry in store.entries():
            reason = why_not_here(entry, device)
            if isinstance(entry, BrokenEntry) or reason:
                yield f"{_describe(entry)}: cannot run here: {reason}"
                continue
            key = entry.key
            if key.dtype not in specs:
                specs[key.dtype] = module_specs(open_pipeline(config.model, device, DTYPES[key.dtype]))
            spec = specs[key.dtype][key.module]
            if (spec.weights_digest(), spec.graph_digest()) != (key.weights, key.graph):
                yield f"{_describe(entry)}: of another model than --model {config.model}"
                continue
            rows = most_rows[spec.name]
            try:
                yield _verified(spec, entry, min(rows, key.most_rows or rows), again=True)
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


def why_not_here(entry: Entry | BrokenEntry, device: torch.device) -> str | None:
    """Why an engine of the store would not be taken here."""
    if isinstance(entry, BrokenEntry):
        return entry.reason
    backend, key = BACKENDS[entry.key.engine], entry.key
    if reason := entry.damage(thorough=False) or backend.why_not(device, DTYPES[key.dtype]) or _stale(entry):
        return reason
    if key.gpu not in ("any", here := platform_name(backend, device).split(", ")[0]):
        return f"built for {key.gpu}, this is {here}"
    return None


def _stale(entry: Entry) -> str | None:
    backend = BACKENDS[entry.key.engine]
    if backend.why_not_build() is None and entry.key.builder != (builder := backend.builder()):
        return f"built by {entry.key.builder}; here is {builder}"
    return None


def _why_prune(entry: Entry | BrokenEntry) -> str | None:
    if isinstance(entry, BrokenEntry):
        return entry.reason
    differs = [f"on {platform}, {found.reason}" for platform, found in entry.verified.items() if not found.ok]
    return entry.damage(thorough=True) or _stale(entry) or (differs[0] if differs else None)


def _verified(spec: ModuleSpec, entry: Entry, rows: int, *, again: bool) -> str:
    backend = BACKENDS[entry.key.engine]
    try:
        _, entry = load(backend, spec, entry, rows, verify_again=again)
    except UnusableEngineError as reason:
        raise UserError(f"{_describe(entry)}: {reason}") from None
    return f"{_describe(entry)}: {_result(entry.verified[platform_name(backend, spec.device)])}"


def _state(entry: Entry | BrokenEntry, device: torch.device) -> str:
    if reason := why_not_here(entry, device):
        return f"cannot run here: {reason}"
    assert isinstance(entry, Entry)
    found = entry.verified.get(platform_name(BACKENDS[entry.key.engine], device))
    return _result(found) if found else "not verified yet; that happens on first use"


def _result(found: Verification) -> str:
    if not found.ok:
        return str(found.reason)
    times = f"{found.engine_ms:g} ms for {found.rows} rows, torch {found.torch_ms:g} ms"
    return f"equals torch: cosine {found.cosine:.6f}, largest error {found.max_error:.2g}; {times}"


def _describe(entry: Entry | BrokenEntry) -> str:
    if isinstance(entry, BrokenEntry):
        return entry.folder.name
    key = entry.key
    rows = f"1 to {key.most_rows} rows" if key.most_rows else "any rows"
    gpu = "" if key.gpu == "any" else f", {key.gpu} ({key.compute_capability})"
    return f"{entry.folder.name} ({key.dtype}, {rows}{gpu}, {_size(entry.bytes)}, built in {entry.build_seconds:g} s)"


def _bytes_of(entry: Entry | BrokenEntry) -> int:
    return sum(path.stat().st_size for path in entry.folder.rglob("*") if path.is_file())


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
