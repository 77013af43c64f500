"""Exported graphs in ONNX Runtime: tensors are bound where they lie, on the CPU and on CUDA."""

from __future__ import annotations

import importlib.util
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablerep.config import UserError
from stablerep.engines import onnx_export
from stablerep.engines.module import OUTPUT, CompiledModule, ModuleSpec, dtype_name
from stablerep.engines.store import EngineKey

FEWEST_ROWS_A_THREAD = 4
FATAL = 4  # its errors are raised too, and reported by us; its warnings are notes on its own layout passes
BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; numpy has no such dtype
ELEMENTS: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: BFLOAT16,
    torch.int64: np.int64,
}


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why ONNX Runtime cannot run a graph of that dtype there."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is missing; pip install 'stablerep[onnx]'"
    import onnxruntime

    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "this onnxruntime has no CUDA provider; pip uninstall onnxruntime, pip install onnxruntime-gpu"
    elif dtype != torch.float32:
        return f"ONNX Runtime computes in fp32 on the CPU, not in {str(dtype).removeprefix('torch.')}"
    return None


def version() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def builder() -> str:
    """What made a graph that is made here."""
    return onnx_export.exporter()


def engine_key(spec: ModuleSpec, most_rows: int) -> EngineKey:
    """A graph serves any number of rows, on any device, in any ONNX Runtime."""
    return EngineKey(
        module=spec.name,
        engine="onnx",
        builder=builder(),
        weights=spec.weights_digest(),
        graph=spec.graph_digest(),
        dtype=dtype_name(spec.dtype),
        most_rows=None,
        flags=(onnx_export.ONNXRUNTIME_OPERATORS,),
    )


def why_not_build() -> str | None:
    """Why no graph can be made here."""
    return onnx_export.why_not()


def build(spec: ModuleSpec, most_rows: int, folder: Path) -> None:
    """Write the graph and its weights."""
    with onnx_export.onnxruntime_operators(spec.module):
        onnx_export.export(spec, folder)


class Runner(CompiledModule):
    """One graph.

    Many rows on the CPU are shared out, a block to a thread: threads that meet in every operator wait
    for the slowest of them each time (128 rows of the embedded default, 2 threads on a busy machine: 607 ms, this 366).
    """

    why_not_capturable = "ONNX Runtime keeps the order of its stream itself"

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device, rows: int) -> None:
        self._dtype, self._device = dtype, device
        threads = torch.get_num_threads()
        self._blocks = threads if device.type == "cpu" and rows >= FEWEST_ROWS_A_THREAD * threads else 1
        self._session = _open(folder / onnx_export.GRAPH_FILE, device, 1 if self._blocks > 1 else threads)
        self._pool = ThreadPoolExecutor(self._blocks) if self._blocks > 1 else None
        self._output_shape = self._session.get_outputs()[0].shape[1:]
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        inputs = {name: value.contiguous() for name, value in inputs.items()}
        rows = len(inputs["latents"])
        output = torch.empty((rows, *self._output_shape), dtype=self._dtype, device=self._device)
        if self._pool is None or rows < self._blocks:
            self._on_stream(inputs, output)
            return output
        starts = [rows * block // self._blocks for block in range(self._blocks + 1)]
        blocks = [slice(start, end) for start, end in itertools.pairwise(starts)]
        running = [self._pool.submit(self._run, _block(inputs, block), output[block]) for block in blocks]
        for block_done in running:
            block_done.result()
        return output

    def _on_stream(self, inputs: dict[str, Tensor], output: Tensor) -> None:
        """Run in order with torch's current stream; the session itself stays on the stream it was opened on."""
        current = torch.cuda.current_stream(self._device) if self._stream else None
        if self._stream is None or current is None or current == self._stream:
            self._run(inputs, output)
            return
        self._stream.wait_stream(current)
        self._run(inputs, output)
        current.wait_stream(self._stream)
        for tensor in (*inputs.values(), output):
            tensor.record_stream(self._stream)

    def _run(self, inputs: dict[str, Tensor], output: Tensor) -> None:
        from onnxruntime import RunOptions

        binding = self._session.io_binding()
        place = (self._device.type, self._device.index or 0)
        for name, value in inputs.items():
            binding.bind_input(name, *place, ELEMENTS[value.dtype], tuple(value.shape), value.data_ptr())
        binding.bind_output(OUTPUT, *place, ELEMENTS[output.dtype], tuple(output.shape), output.data_ptr())
        options = RunOptions()
        options.log_severity_level = FATAL
        if self._stream is not None:  # torch's stream keeps the order; the host need not wait
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._session.run_with_iobinding(binding, options)


def _block(inputs: dict[str, Tensor], block: slice) -> dict[str, Tensor]:
    return {name: value if name == "timestep" else value[block] for name, value in inputs.items()}


def _open(graph: Path, device: torch.device, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        settings = {
            "device_id": str(device.index or 0),
            "user_compute_stream": str(torch.cuda.current_stream(device).cuda_stream),
            "use_tf32": "0",  # fp32 means fp32
        }
        providers.insert(0, ("CUDAExecutionProvider", settings))
    session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    wanted = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if session.get_providers()[0] != wanted:  # it would go on with the CPU without a word
        raise UserError(f"--engine onnx: ONNX Runtime could not start {wanted}; does its wheel match this CUDA?")
    return session
