"""Plans compiled by TensorRT, or by TensorRT-RTX where only that is installed; the two have one API.

The plan reads and writes torch's memory on torch's current stream: no copies, no waiting, fit for a CUDA graph.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablerep.config import UserError
from stablerep.engines import onnx_export
from stablerep.engines.module import OUTPUT, CompiledModule, ModuleSpec, dtype_name
from stablerep.engines.store import EngineKey

PLAN_FILE = "model.plan"
FLAVOURS = ("tensorrt", "tensorrt_rtx")
NO_REASON = "it gives no reason"
ALIGNMENT = 256  # bytes; TensorRT takes no other address

log = logging.getLogger("stablerep.generate")


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no plan can run there."""
    if reason := _why_not_import():
        return reason
    if device.type != "cuda":
        return "TensorRT needs a CUDA GPU; use --engine onnx or torch"
    major, minor = torch.cuda.get_device_capability(device)
    if _is_rtx() and not hasattr(_library().ComputeCapability, f"SM{major}{minor}"):
        name = torch.cuda.get_device_name(device)
        return f"TensorRT-RTX does not know {name} (compute capability {major}.{minor}); pip install 'stablerep[trt]'"
    return None


def why_not_build() -> str | None:
    """Why no plan can be compiled here."""
    if reason := _why_not_import() or onnx_export.why_not():
        return reason
    if not _is_rtx() and not torch.cuda.is_available():
        return "TensorRT compiles on the GPU it compiles for, and there is none (TensorRT-RTX needs none)"
    return None


def version() -> str:
    return f"{_library().__name__} {_library().__version__}"


def builder() -> str:
    """What made a plan that is made here."""
    return f"{version()}, {onnx_export.exporter()}"


def engine_key(spec: ModuleSpec, most_rows: int) -> EngineKey:
    """A plan of TensorRT belongs to one kind of GPU; one of TensorRT-RTX is finished on the GPU it meets."""
    gpu, capability = "any", "any"
    if not _is_rtx():
        gpu = torch.cuda.get_device_name(spec.device)
        capability = "{}.{}".format(*torch.cuda.get_device_capability(spec.device))
    return EngineKey(
        module=spec.name,
        engine="trt",
        builder=builder(),
        weights=spec.weights_digest(),
        graph=spec.graph_digest(),
        dtype=dtype_name(spec.dtype),
        most_rows=most_rows,
        flags=("strongly typed", "no tf32"),
        gpu=gpu,
        compute_capability=capability,
    )


def build(spec: ModuleSpec, most_rows: int, folder: Path) -> None:
    """Export the graph and compile it for 1 to most_rows rows.

    Raises:
        UserError: TensorRT refuses the graph, or the plan is too small to hold the weights in the dtype asked for.
    """
    with tempfile.TemporaryDirectory(dir=folder) as graphs:
        onnx_export.export(spec, Path(graphs))
        graph = Path(graphs) / onnx_export.GRAPH_FILE
        plan = compile_graph(spec.name, graph, spec.row_shapes, most_rows)
    weights = sum(weight.nbytes for weight in spec.module.parameters())
    if plan.nbytes < 0.9 * weights:
        raise UserError(f"TensorRT kept {spec.name} in {plan.nbytes} bytes, too few for weights in the dtype asked for")
    with (folder / PLAN_FILE).open("wb") as file:
        file.write(plan)


class Runner(CompiledModule):
    """One plan.

    Raises:
        ValueError: the plan is of another GPU, version or precision; the text says which.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device, rows: int) -> None:
        trt = _library()
        plan = (folder / PLAN_FILE).read_bytes()
        with torch.cuda.device(device):
            self._runtime = trt.Runtime(_logger())
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise ValueError(f"{trt.__name__} {trt.__version__} cannot open it here: {_last_error()}")
        self._context = _context(engine, device)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._dtypes = {name: _torch_dtype(engine.get_tensor_dtype(name)) for name in names}
        for name, found in self._dtypes.items():
            if name != "timestep" and found != dtype:
                raise ValueError(f"{name} is {found}, not {dtype}")
        self._engine, self._dtype, self._device = engine, dtype, device
        self._most_rows = engine.get_tensor_profile_shape("latents", 0)[2][0]
        # The loop hands out one number of a table, which lies anywhere; TensorRT wants aligned addresses.
        self._timestep = torch.zeros(1, dtype=self._dtypes.get("timestep", torch.float32), device=device)

    def with_own_context(self) -> Runner:
        """The same plan with an execution context of its own: a CUDA graph's must not be set to another shape later."""
        other = copy.copy(self)
        other._context = _context(self._engine, self._device)
        other._timestep = torch.zeros_like(self._timestep)
        return other

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        rows = len(inputs["latents"])
        if rows > self._most_rows:
            raise UserError(
                f"{rows} rows are more than the engine's {self._most_rows}; rebuild with a larger --batch-size"
            )
        if "timestep" in inputs:
            self._timestep.copy_(inputs["timestep"])  # on the device
            inputs = inputs | {"timestep": self._timestep}
        bound = {name: _aligned(value) for name, value in inputs.items()}
        for name, value in bound.items():
            assert value.dtype == self._dtypes[name], f"{name} is {value.dtype}"
            self._context.set_input_shape(name, tuple(value.shape))
            self._context.set_tensor_address(name, value.data_ptr())
        shape = tuple(self._context.get_tensor_shape(OUTPUT))
        output = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._context.set_tensor_address(OUTPUT, output.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise RuntimeError(f"TensorRT could not run the plan: {_last_error()}")
        return output


def _context(engine: Any, device: torch.device) -> Any:
    with torch.cuda.device(device):
        context = engine.create_execution_context()
    if context is None:
        raise ValueError(f"its working memory does not fit the GPU: {_last_error()}")
    return context


def compile_graph(name: str, graph: Path, row_shapes: Mapping[str, tuple[int, ...] | None], most_rows: int) -> Any:
    """The plan of a graph whose inputs take 1 to most_rows rows of these shapes; None: an input without rows.

    Raises:
        UserError: TensorRT refuses the graph.
    """
    trt = _library()
    builder = trt.Builder(_logger())
    # The dtype is in the graph; strongly typed, TensorRT computes in it and no other. TensorRT 11 knows nothing else.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, _logger())
    if not parser.parse_from_file(str(graph)):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise UserError(f"TensorRT cannot read the graph of {name}: {' '.join(reasons.split())[:300]}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    profile = builder.create_optimization_profile()
    for input_name, shape in row_shapes.items():
        if shape:
            profile.set_shape(input_name, (1, *shape), (most_rows, *shape), (most_rows, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"TensorRT cannot compile {name}: {_last_error()}")
    return plan


def _aligned(value: Tensor) -> Tensor:
    value = value.contiguous()
    return value.clone() if value.data_ptr() % ALIGNMENT else value


def _torch_dtype(kind: Any) -> torch.dtype | None:
    trt = _library()
    known = {trt.float32: torch.float32, trt.float16: torch.float16, trt.bfloat16: torch.bfloat16}
    return (known | {trt.int64: torch.int64, trt.int32: torch.int32}).get(kind)


def _is_rtx() -> bool:
    return _library().__name__ == "tensorrt_rtx"


@functools.cache
def _why_not_import() -> str | None:
    reasons = []
    for name in FLAVOURS:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
            return None
        except (ImportError, OSError, RuntimeError) as error:  # the wheel is there and its libraries do not load
            reasons.append(f"{name} does not load: {' '.join(str(error).split())[:200]}")
    missing = "TensorRT is missing; pip install 'stablerep[trt]' (data-centre GPUs) or 'stablerep[trt-rtx]' (RTX GPUs)"
    return "; ".join(reasons) or missing


@functools.cache
def _library() -> Any:
    """tensorrt, or else tensorrt_rtx."""
    for name in FLAVOURS:
        if importlib.util.find_spec(name) is not None:
            try:
                return importlib.import_module(name)
            except (ImportError, OSError, RuntimeError):
                continue
    raise UserError(_why_not_import() or "")


@functools.cache
def _logger() -> Any:
    trt = _library()

    class Lines(trt.ILogger):  # type: ignore[name-defined]
        """TensorRT's lines in our log; the last error is kept, since its calls return None without a word."""

        last_error = NO_REASON

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = " ".join(message.split())[:300]
            log.debug("TensorRT %s: %s", severity, message)

    return Lines()


def _last_error() -> str:
    """Said once: a later failure without a word must not be taken for this one."""
    error, _logger().last_error = _logger().last_error, NO_REASON
    return str(error)
