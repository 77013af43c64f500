"""Operations on torch tensors, one folder each; every one works on the CPU and on CUDA."""

from stablerep.ops.image_text_loss import image_text_loss
from stablerep.ops.impls import ImplUnavailable
from stablerep.ops.multi_positive_loss import multi_positive_loss
from stablerep.ops.philox_normal import philox_normal

__all__ = ["ImplUnavailable", "image_text_loss", "multi_positive_loss", "philox_normal"]
