"""An encoder as a graph: ONNX, compared with torch before it is kept, and what TensorRT compiles of it."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from stablerep.config import UserError
from stablerep.engines import onnx_export, tensorrt
from stablerep.models import InputTransform

IMAGES, FEATURES = "images", "features"
TRANSFORM_FILE = "input_transform.json"
MOST_ERROR = 1e-3  # of the features' norm; float32 on either side gives about 1e-6
INLINE_BYTES = 1_500_000_000  # a file of protobuf ends at 2 GB


def export_onnx(encoder: nn.Module, transform: InputTransform, folder: Path) -> float:
    """Write model.onnx ([rows, 3, S, S] normalised float32 to [rows, features]) and how pictures become its input.

    Returns how far ONNX Runtime's features are from torch's, as a share of their norm.

    Raises:
        UserError: the onnx extra is missing, the model cannot be exported, or its graph computes something else.
    """
    if reason := onnx_export.why_not():
        raise UserError(f"--to onnx: {reason}")
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError("--to onnx: onnxruntime is missing, which checks the graph; pip install 'stablerep[onnx]'")
    _write_graph(encoder, transform, folder / onnx_export.GRAPH_FILE)
    error = _distance(encoder, transform, folder / onnx_export.GRAPH_FILE)
    if not error < MOST_ERROR:
        raise UserError(f"--to onnx: the graph's features differ from torch's by {error:.1%}; use --to timm")
    (folder / TRANSFORM_FILE).write_text(json.dumps(asdict(transform), indent=1) + "\n")
    return error


def export_tensorrt(encoder: nn.Module, transform: InputTransform, folder: Path, batch_size: int) -> None:
    """Write model.plan, which takes 1 to batch_size pictures, and how they become its input.

    Raises:
        UserError: as export_onnx, or TensorRT cannot compile it here.
    """
    size = transform.image_size
    if reason := tensorrt.why_not_build():
        shapes = [f"--{name}Shapes={IMAGES}:{rows}x3x{size}x{size}" for name, rows in zip(
            ("min", "opt", "max"), (1, batch_size, batch_size), strict=True)]  # fmt: skip
        raise UserError(
            f"--to trt: {reason}; or --to onnx here, and there: trtexec --onnx=model.onnx {' '.join(shapes)} "
            "--saveEngine=model.plan"
        )
    with tempfile.TemporaryDirectory(dir=folder) as graphs:
        export_onnx(encoder, transform, Path(graphs))
        graph = Path(graphs) / onnx_export.GRAPH_FILE
        plan = tensorrt.compile_graph("the encoder", graph, {IMAGES: (3, size, size)}, batch_size)
        (folder / TRANSFORM_FILE).write_text((Path(graphs) / TRANSFORM_FILE).read_text())
    with (folder / tensorrt.PLAN_FILE).open("wb") as file:
        file.write(plan)


def _write_graph(encoder: nn.Module, transform: InputTransform, path: Path) -> None:
    images = torch.zeros(2, 3, transform.image_size, transform.image_size)  # one row would be taken for a constant
    rows = torch.export.Dim("rows", min=1, max=onnx_export.MOST_ROWS)
    try:
        with onnx_export.quiet():
            program = torch.onnx.export(
                encoder, (images,), dynamo=True, dynamic_shapes=({0: rows},), input_names=[IMAGES],
                output_names=[FEATURES], opset_version=onnx_export.OPSET, verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"this model cannot be exported as ONNX: {' '.join(str(error).split())[:200]}") from error
    assert program is not None
    weights = sum(weight.nbytes for weight in encoder.parameters())
    program.save(path, external_data=weights > INLINE_BYTES)


def _distance(encoder: nn.Module, transform: InputTransform, path: Path) -> float:
    """By three random pictures: another number of rows than the graph was traced with."""
    import onnxruntime

    side = transform.image_size
    pixels = torch.randint(0, 256, (3, side, side, 3), generator=torch.Generator().manual_seed(0))
    images = transform(pixels.byte())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run([FEATURES], {IMAGES: images.numpy()})[0])
    with torch.no_grad():
        expected = encoder(images)
    return ((found - expected).norm() / expected.norm()).item()
