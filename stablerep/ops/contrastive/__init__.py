"""The contrastive losses of StableRep and StableRep+, which share their tiles, their Triton kernels and their batch."""

from stablerep.ops.contrastive.image_text_loss import image_text_loss
from stablerep.ops.contrastive.multi_positive_loss import multi_positive_loss

__all__ = ["image_text_loss", "multi_positive_loss"]
