"""The UNet and the VAE decoder as ONNX graphs: weights and arithmetic in the part's dtype, any number of rows."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from stablerep.config import UserError
from stablerep.engines import parts
from stablerep.engines.parts import Part

GRAPH_FILE = "model.onnx"
# ONNX Runtime and TensorRT both know all of it; from 23 on attention is one operator, which older TensorRTs lack.
OPSET = 20
EXPORTER = 1  # counts changes of ours to the graph; part of an engine's identity
MOST_ROWS = 1 << 16


def why_not() -> str | None:
    """Why no graph can be exported here."""
    missing = [name for name in ("onnx", "onnxscript") if _version(name) is None]
    return f"{' and '.join(missing)} missing; pip install 'stablerep[onnx]'" if missing else None


def exporter() -> str:
    """What a graph depends on besides the module."""
    names = ("torch", "onnxscript", "diffusers")
    return ", ".join([f"exporter {EXPORTER}", f"opset {OPSET}", *(f"{name} {_version(name)}" for name in names)])


def export(part: Part, folder: Path) -> None:
    """Write GRAPH_FILE and, beside it, its weights (a graph with its weights inside ends at 2 GB).

    Raises:
        UserError: the `onnx` extra is missing.
    """
    if reason := why_not():
        raise UserError(f"no ONNX graph can be exported: {reason}")
    inputs = part.example(2)  # one row would be taken for a constant
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    dynamic = {name: {0: rows} if part.row_shapes[name] else None for name in inputs}
    with _quiet():
        program = torch.onnx.export(
            part.module,
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=list(inputs),
            output_names=[parts.OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        program.save(folder / GRAPH_FILE, external_data=True)
    check_precision(folder, parts.dtype_name(part.dtype))


def check_precision(folder: Path, dtype: str) -> None:
    """Look into a graph for what has another precision than asked.

    Raises:
        UserError: an input, the output or more than a hundredth of the weights is of another dtype. (Tables such as
            the timestep's frequencies stay in fp32, as they do in torch.)
    """
    import onnx

    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    not_weights = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    graph = onnx.load(folder / GRAPH_FILE, load_external_data=False).graph
    held: dict[str, int] = {}
    for tensor in graph.initializer:
        if tensor.data_type not in not_weights:
            name = names.get(tensor.data_type) or onnx.TensorProto.DataType.Name(tensor.data_type)
            held[name] = held.get(name, 0) + math.prod(tensor.dims)
    others = {name for name, count in held.items() if name != dtype and count > sum(held.values()) / 100}
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type.elem_type
        if value.name != "timestep" and names.get(kind) != dtype:
            others.add(f"{value.name} {onnx.TensorProto.DataType.Name(kind)}")
    if others:
        raise UserError(f"{dtype} was asked for, but the graph holds {', '.join(sorted(others))}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on its own inner life."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
