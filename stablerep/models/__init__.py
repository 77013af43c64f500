"""Encoders, and the head they are trained with."""

from stablerep.models.checkpoints import architecture_of, load_encoder, load_weights
from stablerep.models.encoder import blocks_of, create_encoder, save_exported, set_activation_checkpointing
from stablerep.models.head import ProjectionHead
from stablerep.models.input_transform import IMAGENET_MEAN, IMAGENET_STD, InputTransform
from stablerep.models.pretrained import full_name

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "InputTransform",
    "ProjectionHead",
    "architecture_of",
    "blocks_of",
    "create_encoder",
    "full_name",
    "load_encoder",
    "load_weights",
    "save_exported",
    "set_activation_checkpointing",
]
