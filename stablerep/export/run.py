"""One export: an encoder in, a folder out, whole or not at all."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from stablerep import atomic
from stablerep.config import UserError, check_folder
from stablerep.export.card import model_card
from stablerep.export.config import ExportConfig
from stablerep.export.graphs import export_onnx, export_tensorrt
from stablerep.models import InputTransform, architecture_of, load_encoder, save_exported

REFERENCE_FILE = "epoch_last.pth"
REFERENCE_MODELS = {f"vit_{size}_patch16_224": size for size in ("small", "base", "large")}


def export(config: ExportConfig) -> list[str]:  # what to tell the user: the folder, and how it is opened
    """Write the encoder as config.to into config.out.

    Raises:
        UserError: no such encoder, one that this form cannot hold, a library that is missing, or an --out that is not
            empty.
    """
    out = Path(config.out)
    check_folder("--out", out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty; choose a new folder")
    try:
        encoder, transform = load_encoder(config.checkpoint, config.arch)
    except UserError as error:
        raise UserError(f"--checkpoint {error}") from error
    arch = architecture_of(encoder)
    if config.to in ("timm", "hf"):
        card = model_card(config.checkpoint, encoder, transform)
        save_exported(encoder, arch, transform, out)
        if config.to == "timm":
            return [f'{out}: timm.create_model("local-dir:{out}", pretrained=True)']
        atomic.write(out / "README.md", card)
        return [
            f"{out}: fill in the licence in README.md, then hf upload OWNER/NAME {out}",
            'timm.create_model("hf-hub:OWNER/NAME", pretrained=True), or transformers.AutoModel.from_pretrained',
        ]
    with atomic.new_folder(out) as new:
        if config.to == "onnx":
            distance = export_onnx(encoder, transform, new)
            return [f"{out / 'model.onnx'}: differs from torch by {distance:.1e} (ONNX Runtime, random pictures)"]
        if config.to == "trt":
            export_tensorrt(encoder, transform, new, config.batch_size)
            return [f"{out / 'model.plan'}: 1 to {config.batch_size} pictures at once"]
        _save_reference(encoder, arch, transform, new)
        return [f"main_linear.py --model {REFERENCE_MODELS[arch]} --pretrained {out / REFERENCE_FILE}"]


def _save_reference(encoder: nn.Module, arch: str, transform: InputTransform, folder: Path) -> None:
    """The layout of the reference code's checkpoints: the encoder under `visual.`, the flags beside it."""
    if arch not in REFERENCE_MODELS or transform.image_size != 224:
        raise UserError(
            f"--to reference: the reference code knows {', '.join(REFERENCE_MODELS)} at 224 pixels, and this is "
            f"a {arch} at {transform.image_size}; use --to timm"
        )
    model = {f"visual.{name}": value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    state = {"model": model, "epoch": 0, "args": argparse.Namespace(model=REFERENCE_MODELS[arch], add_language=False)}
    torch.save(state, folder / REFERENCE_FILE)
