"""Operations on torch tensors; every one works on the CPU and on CUDA."""

from stablerep.ops.contrastive import image_text_loss, multi_positive_loss
from stablerep.ops.guided_step import guided_step
from stablerep.ops.impls import ImplUnavailable
from stablerep.ops.philox_normal import philox_normal
from stablerep.ops.strong_augment import AugmentSpec, strong_augment
from stablerep.ops.to_pixels import to_pixels

__all__ = [
    "AugmentSpec",
    "ImplUnavailable",
    "guided_step",
    "image_text_loss",
    "multi_positive_loss",
    "philox_normal",
    "strong_augment",
    "to_pixels",
]
