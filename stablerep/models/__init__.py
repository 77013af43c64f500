"""Encoders, and the head they are trained with."""

from stablerep.models.encoder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InputTransform,
    create_encoder,
    load_encoder,
    save_exported,
)
from stablerep.models.head import ProjectionHead

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "InputTransform",
    "ProjectionHead",
    "create_encoder",
    "load_encoder",
    "save_exported",
]
