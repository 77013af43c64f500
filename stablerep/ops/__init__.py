"""Operations on torch tensors, one folder each; every one works on the CPU and on CUDA."""

from stablerep.ops.impls import ImplUnavailable
from stablerep.ops.multi_positive_loss import multi_positive_loss
from stablerep.ops.philox_normal import philox_normal
from stablerep.ops.strong_augment import AugmentSpec, strong_augment

__all__ = ["AugmentSpec", "ImplUnavailable", "multi_positive_loss", "philox_normal", "strong_augment"]
