"""What an export is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stablerep.config import UserError, check_at_least, check_choice

FORMATS = ("timm", "hf", "onnx", "trt", "reference")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write an encoder in a form that others open."""

    checkpoint: str
    """A run of stablerep-train, or the exported_best/ in one; a file of weights; a name of timm or hf-hub:OWNER/NAME.
    Also as the first word, without the flag."""

    arch: str | None = None
    """The timm model that a file of weights is of, where the file does not say."""

    to: str = "timm"
    """`timm`: a folder for timm.create_model. `hf`: the same with a model card, for the hub and for transformers.
    `onnx`: a graph, compared with torch by ONNX Runtime. `trt`: a TensorRT engine. `reference`: epoch_last.pth, which
    the reference code's main_linear.py takes as --pretrained."""

    out: Path
    """A new folder for it."""

    batch_size: int = 64
    """Most pictures at once that a TensorRT engine takes, and is fastest at."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("--checkpoint is empty; give a run of stablerep-train or a file of weights")
        check_choice("--to", self.to, FORMATS)
        check_at_least(self, batch_size=1)
