"""The UNet and the VAE decoder as ONNX graphs: weights and arithmetic in the module's dtype, any number of rows.

For ONNX Runtime they are exported in operators that it has one kernel for. Measured on the embedded default's UNet, 64
rows, one thread: 134 ms as diffusers writes it, 121 ms so (torch: 159 ms). Without them, attention over 4,096 positions
would also keep its whole table of weights in memory.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from stablerep.config import UserError
from stablerep.engines.module import OUTPUT, ModuleSpec, dtype_name

GRAPH_FILE = "model.onnx"
# ONNX Runtime and TensorRT both know all of it; from 23 on attention is one operator, which older TensorRTs lack.
OPSET = 20
EXPORTER = 1  # counts changes of ours to the graph; part of an engine's identity
MOST_ROWS = 1 << 16
ONNXRUNTIME_OPERATORS = "onnxruntime forms 1"  # their version, as engine.json has it
BATCH_NORM_EPSILON = 1e-5  # the least that cuDNN takes


def why_not() -> str | None:
    """Why no graph can be exported here."""
    missing = [name for name in ("onnx", "onnxscript") if _version(name) is None]
    return f"{' and '.join(missing)} missing; pip install 'stablerep[onnx]'" if missing else None


def exporter() -> str:
    """What a graph depends on besides the module."""
    names = ("torch", "onnxscript", "diffusers")
    return ", ".join([f"exporter {EXPORTER}", f"opset {OPSET}", *(f"{name} {_version(name)}" for name in names)])


def export(spec: ModuleSpec, folder: Path) -> None:
    """Write GRAPH_FILE and, beside it, its weights (a graph with its weights inside ends at 2 GB).

    Raises:
        UserError: the `onnx` extra is missing.
    """
    if reason := why_not():
        raise UserError(f"no ONNX graph can be exported: {reason}")
    inputs = spec.example_inputs(2)  # one row would be taken for a constant
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    dynamic = {name: {0: rows} if spec.row_shapes[name] else None for name in inputs}
    with quiet():
        program = torch.onnx.export(
            spec.module,
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=list(inputs),
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        program.save(folder / GRAPH_FILE, external_data=True)
    check_precision(folder, dtype_name(spec.dtype))


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
def quiet() -> Iterator[None]:
    """Without the exporter's notes on itself."""
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


@contextlib.contextmanager
def onnxruntime_operators(module: nn.Module) -> Iterator[None]:
    """Within, tracing the module gives operators that ONNX Runtime has one kernel for; after, all is as it was."""
    forwards: dict[type, Callable[..., Tensor]] = {nn.Linear: _linear, nn.GroupNorm: _group_norm, GEGLU: _geglu}
    changed = [inner for inner in module.modules() if type(inner) in forwards]
    attention = F.scaled_dot_product_attention
    for inner in changed:
        inner.forward = types.MethodType(forwards[type(inner)], inner)
    F.scaled_dot_product_attention = _attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attention
        for inner in changed:
            del inner.forward


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    """On a matrix, product and bias are one Gemm with packed weights; on three dimensions they are two operators."""
    y = F.linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _geglu(self: GEGLU, x: Tensor) -> Tensor:
    """The weights are cut in two once and for all, not the product each time."""
    rows = x.reshape(-1, x.shape[-1])
    bias = (None, None) if self.proj.bias is None else self.proj.bias.chunk(2)
    straight, gate = (F.linear(rows, w, b) for w, b in zip(self.proj.weight.chunk(2), bias, strict=True))
    y = straight * F.gelu(gate)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _group_norm(self: nn.GroupNorm, x: Tensor) -> Tensor:
    """Scale and shift of a channel as one batch norm of known statistics, not as two broadcasts."""
    y = F.instance_norm(x.reshape(x.shape[0], self.num_groups, -1), eps=self.eps).reshape(x.shape)
    if not self.affine:
        return y
    mean, variance = torch.zeros_like(self.weight), torch.full_like(self.weight, 1 - BATCH_NORM_EPSILON)
    return F.batch_norm(y, mean, variance, self.weight, self.bias, False, 0.0, BATCH_NORM_EPSILON)


def _attention(
    query: Tensor,  # [B, heads, tokens, width]
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **unknown: Any,
) -> Tensor:
    """One operator, which never holds the table of weights as a whole."""
    if attn_mask is not None or dropout_p or is_causal or unknown:
        raise NotImplementedError("attention with a mask in a UNet or a VAE decoder")
    heads = query.shape[1]
    rows = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]
    attributes: dict[str, Any] = {"num_heads": heads} | ({} if scale is None else {"scale": scale})
    y = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention", rows, attributes, dtype=query.dtype, shape=rows[0].shape, version=1
    )
    return y.unflatten(2, (heads, -1)).transpose(1, 2)
