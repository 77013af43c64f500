"""StableRep: train vision encoders on pictures from a text-to-image model.

generate(prompts=..., out=...) paints shards, train(data=..., out=...) trains an encoder on them, and
evaluate(checkpoint=..., data=..., out=...) measures it on real photos; poc(prompts=..., real=..., out=...) does all
three and says whether synthetic data pay. Each takes the fields of its config.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from stablerep.adapt.summary import AdaptSummary
    from stablerep.generate.summary import GenerateSummary, SweepSummary
    from stablerep.models import InputTransform

__version__ = "0.1.0"
__all__ = [
    "adapt", "default_generator", "evaluate", "export", "generate", "load_encoder", "poc", "quality", "report",
    "search", "train",
]  # fmt: skip

# Imports sit in the functions: `import stablerep` loads neither torch nor a GPU driver.


def generate(**fields: Any) -> GenerateSummary | SweepSummary:
    """Paint K pictures of every prompt into shards; fields as in generate.config.GenerateConfig.

    guidance_scale=[1, 2] makes a run of each, and the result holds a summary of each.
    """
    from stablerep.config import from_fields
    from stablerep.generate.config import GenerateConfig
    from stablerep.generate.run import generate

    return generate(from_fields(GenerateConfig, fields))


def adapt(**fields: Any) -> AdaptSummary:
    """Teach a diffusion model one's own photos; fields as in adapt.config.AdaptConfig."""
    from stablerep.adapt.config import AdaptConfig
    from stablerep.adapt.run import adapt
    from stablerep.config import from_fields
    from stablerep.generate.samples import open_model, paint_samples
    from stablerep.train.stopping import listening

    return adapt(from_fields(AdaptConfig, fields), open_model, paint_samples, listening)


def train(**fields: Any) -> Path:
    """Train an encoder; fields as in train.config.TrainConfig. Returns the exported folder."""
    from stablerep.config import from_fields
    from stablerep.train.config import TrainConfig
    from stablerep.train.loop import train

    config, open_online, open_probe = from_fields(TrainConfig, fields), None, None
    if config.online:
        from stablerep.generate.online import opener

        open_online = opener(config.online, Path(config.out))
    if config.watch:
        from stablerep.evaluate.watch import open_watch

        open_probe = open_watch(config.watch, config.seed)
    return train(config, open_online, open_probe)


def evaluate(**fields: Any) -> dict[str, Any]:
    """Measure a frozen encoder on a labelled set; fields as in evaluate.config.EvaluateConfig. Returns the results."""
    from stablerep.config import from_fields
    from stablerep.evaluate.config import EvaluateConfig
    from stablerep.evaluate.run import evaluate

    return evaluate(from_fields(EvaluateConfig, fields))


def poc(**fields: Any) -> dict[str, Any]:
    """Is synthetic data worth it? Fields as in poc.config.PocConfig. Returns what poc.json holds."""
    from stablerep.config import from_fields
    from stablerep.poc.config import PocConfig
    from stablerep.poc.run import run_poc

    return run_poc(from_fields(PocConfig, fields))


def quality(**fields: Any) -> dict[str, Any]:
    """Compare synthetic pictures with real photos; fields as in evaluate.quality.config.QualityConfig."""
    from stablerep.config import from_fields
    from stablerep.evaluate.quality.config import QualityConfig
    from stablerep.evaluate.quality.run import quality

    return quality(from_fields(QualityConfig, fields))


def export(**fields: Any) -> list[str]:
    """Write an encoder for timm, the hub, ONNX or TensorRT; fields as in export.config.ExportConfig."""
    from stablerep.config import from_fields
    from stablerep.export.config import ExportConfig
    from stablerep.export.run import export

    return export(from_fields(ExportConfig, fields))


def report(**fields: Any) -> Path:
    """Write a run's results as one HTML page; fields as in report.config.ReportConfig. Returns the page's path."""
    from stablerep.config import from_fields
    from stablerep.report.config import ReportConfig
    from stablerep.report.run import report

    return report(from_fields(ReportConfig, fields))


def search(**fields: Any) -> dict[str, Any]:
    """Search the settings of painting within a budget; fields as in search.config.SearchConfig. Returns search.json."""
    from stablerep.config import from_fields
    from stablerep.search.config import SearchConfig
    from stablerep.search.proxy import open_proxy
    from stablerep.search.run import search

    config = from_fields(SearchConfig, fields)
    return search(config, open_proxy(config))


def load_encoder(path_or_name: str | Path, arch: str | None = None) -> tuple[nn.Module, InputTransform]:
    """Open an encoder with the transform its pictures need; it comes in eval mode, without classifier.

    path_or_name: a run of stablerep-train or its exported/ folder; a folder of timm; a file of weights (safetensors, or
    as torch.save writes it), with arch = timm's name of the model where the file does not say; or a timm name
    (resnet50.a1_in1k) or hf-hub:owner/name, with pretrained weights.
    """
    from stablerep.models import load_encoder

    return load_encoder(path_or_name, arch)


def default_generator() -> Path:
    """The folder of the Stable Diffusion pipeline that ships with the package."""
    from stablerep.hub import default_generator

    return default_generator()


class _Face(ModuleType):
    """generate, train and the other functions here are the names of the packages that do the work, too.

    Importing a package binds its name in the parent; this keeps the functions. `from stablerep.train import loop`
    finds the packages as ever.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
