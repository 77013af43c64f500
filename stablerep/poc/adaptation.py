"""The generator that first learns the photos to train on, where --adapt asks for it."""

from __future__ import annotations

from pathlib import Path

from stablerep import config as configs
from stablerep.adapt.config import AdaptConfig
from stablerep.adapt.run import adapt
from stablerep.generate.samples import open_model, paint_samples
from stablerep.poc.config import PocConfig
from stablerep.poc.settings import ModelRef, Settings, read_flags
from stablerep.train.stopping import listening

OWN = ("photos", "model", "out", "seed", "dry_run", "device")  # what the proof of concept says itself


def adapting(config: PocConfig, settings: Settings, photos: Path, out: Path) -> AdaptConfig:
    """What is asked of stablerep-adapt: --adapt's flags, of the model that is to paint.

    Raises:
        UserError: a file that cannot be read, an unknown field, or one that the proof of concept says itself.
    """
    assert config.adapt is not None
    fields = read_flags("--adapt", AdaptConfig, config.adapt, OWN)
    if "model" in settings.generate:
        fields["model"] = settings.generate["model"]
    given = {"photos": str(photos), "out": out, "seed": config.seed, "device": config.device}
    return configs.from_fields(AdaptConfig, {**fields, **given})


def adapted(asked: AdaptConfig) -> ModelRef:
    """The generator that has learned the photos; goes on with one that was begun."""
    summary = adapt(asked, open_model, paint_samples, listening)
    if summary.full:
        return ModelRef(str(summary.weights))
    return ModelRef(asked.model, (f"{summary.out}:1",))
