"""The language half of StableRep+: images and texts of one caption find each other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from stablerep.ops import impls
from stablerep.ops.contrastive import batch, reference, tiled
from stablerep.ops.contrastive.batch import Backend, Captions

OP = "image_text_loss"
Impl = Literal["auto", "triton", "tiled", "reference"]
IMPLS = {"triton": impls.triton, "tiled": impls.anywhere, "reference": impls.anywhere}


def image_text_loss(
    image_features: Tensor,  # [N, D] float, any norm; N the same on every rank
    text_features: Tensor,  # [N, D] likewise, row i the caption of image i
    labels: Tensor,  # [N] int64, equal = same caption, also across ranks
    logit_scale: Tensor,  # [] as open_clip's: exp of the learned number, clamped to at most 100 by the caller
    group: ProcessGroup | None = None,  # None: the default group if torch.distributed is started, else this process
    impl: Impl = "auto",
) -> Tensor:  # [] float32; float64 for float64 features
    """Half the sum of image-to-text and text-to-image cross-entropies over the rows of all ranks (StableRep+, CLIP).

    With s_ij = logit_scale cos(image_i, text_j), image i pays LSE_j(s_ij) less the mean of s_ij over the texts of its
    caption, its own text included; texts likewise over images. Mean over the global N; 0 for an empty batch. Where
    every caption has one image, this is the loss of CLIP. A row of zeros has cosine 0 with every row and gets no
    gradient. A row with NaN or infinity, or such a logit_scale, makes the loss and the gradients NaN. Precision,
    memory, ranks and the range of norms are as in multi_positive_loss; the gradient of logit_scale is that of this
    rank's images times world size, so that its mean over ranks is the gradient of the global loss. Never waits for
    the device. Not twice differentiable.

    Raises:
        ValueError: the features are not [N, D] both, labels is not [N], logit_scale is not a scalar, or D > 1024
            with "triton".
        TypeError: the features are not floating point of one type or, with "triton", are float64; labels is not
            int64, or logit_scale is not floating point.
        ImplUnavailable: impl cannot run on that device.
    """
    shapes = [list(tensor.shape) for tensor in (image_features, text_features, labels, logit_scale)]
    if image_features.ndim != 2 or shapes[0] != shapes[1] or shapes[2] != shapes[0][:1] or shapes[3]:
        raise ValueError(f"{OP}: features must be [N, D], labels [N] and logit_scale [], got {shapes}")
    dtypes = [tensor.dtype for tensor in (image_features, text_features, labels, logit_scale)]
    floating = image_features.is_floating_point() and logit_scale.is_floating_point()
    if not floating or dtypes[0] != dtypes[1] or dtypes[2] != torch.int64:
        raise TypeError(f"{OP}: features must be of one float type, labels int64, logit_scale float, got {dtypes}")
    chosen = batch.choose_impl(OP, impl, image_features, IMPLS)
    batch.check_impl(OP, chosen, image_features)
    logit_scale = logit_scale.to(batch.compute_dtype(image_features.dtype))
    if image_features.numel() == 0:
        return (image_features.sum() + text_features.sum()) * logit_scale  # 0, and still part of the graph
    images, texts = batch.gather(image_features, group), batch.gather(text_features, group)
    labels = batch.gather(labels, group)
    length, world_size = len(image_features), batch.world_size(group)
    first = batch.rank(group) * length
    with torch.autocast(image_features.device.type, enabled=False):
        if chosen == "reference":
            return _reference(image_features, text_features, images, texts, labels, logit_scale, first, world_size)
        norms = batch.inverse_norm(images), batch.inverse_norm(texts)
        scale = logit_scale.detach()
        lse = torch.ops.stablerep.image_text_lse(images, texts, *norms, scale, first, length, chosen)
        lse = batch.gather(lse.T, group).T.contiguous()
        return torch.ops.stablerep.image_text_loss(
            image_features, text_features, logit_scale, images, texts, *norms, *batch.captions_of(labels), lse, first,
            world_size, chosen,
        )  # fmt: skip


def _reference(
    image_features: Tensor, text_features: Tensor, images: Tensor, texts: Tensor, labels: Tensor, logit_scale: Tensor,
    first: int, world_size: int,
) -> Tensor:  # fmt: skip
    """Every rank computes all; gradient goes to its own rows, and to the scale from its share of them."""
    end = first + len(image_features)
    images = torch.cat([images[:first], image_features, images[end:]]).to(logit_scale.dtype)
    texts = torch.cat([texts[:first], text_features, texts[end:]]).to(logit_scale.dtype)
    share = logit_scale.detach() + (logit_scale - logit_scale.detach()) / world_size
    loss = reference.image_text_loss(images, texts, labels, share)
    return loss.detach() + world_size * (loss - loss.detach())


def _backend(
    impl: str, images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor
) -> Backend:
    if impl == "tiled":
        return tiled.ImageText(images, texts, image_norms, text_norms, logit_scale)
    from stablerep.ops.contrastive import launch  # takes half a second, and only CUDA needs it

    return launch.ImageText(images, texts, image_norms, text_norms, logit_scale)


@torch.library.custom_op("stablerep::image_text_lse", mutates_args=())
def _lse(
    images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor,
    first: int, length: int, impl: str,
) -> Tensor:  # fmt: skip
    """[2, length] log-sum-exp of rows first .. of images over texts, of texts over images; Triton: in base 2."""
    with torch.autocast(images.device.type, enabled=False):
        backend = _backend(impl, images, texts, image_norms, text_norms, logit_scale)
        return backend.logsumexp(slice(first, first + length))


@_lse.register_fake
def _(
    images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor, logit_scale: Tensor,
    first: int, length: int, impl: str,
) -> Tensor:  # fmt: skip
    return image_norms.new_empty(2, length)


@torch.library.custom_op("stablerep::image_text_loss", mutates_args=())
def _loss(
    image_features: Tensor,  # [length, D], the rows from first on; these three take the gradient
    text_features: Tensor,
    logit_scale: Tensor,  # []
    images: Tensor,  # [N, D] of all ranks
    texts: Tensor,
    image_norms: Tensor,  # [N] inverse norms
    text_norms: Tensor,
    order: Tensor,  # [N] these three as in Captions
    slot: Tensor,
    size: Tensor,
    lse: Tensor,  # [2, N] as image_text_lse gave it
    first: int,
    world_size: int,
    impl: str,
) -> Tensor:
    """The loss of all rows, which is cheap once their LSE are known: O(N D)."""
    backend = _backend(impl, images, texts, image_norms, text_norms, logit_scale)
    return backend.loss(Captions(order, slot, size), lse)


@_loss.register_fake
def _(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, images: Tensor, texts: Tensor,
    image_norms: Tensor, text_norms: Tensor, order: Tensor, slot: Tensor, size: Tensor, lse: Tensor,
    first: int, world_size: int, impl: str,
) -> Tensor:  # fmt: skip
    return image_norms.new_empty(())


@torch.library.custom_op("stablerep::image_text_loss_backward", mutates_args=())
def _backward(
    factor: Tensor, logit_scale: Tensor, images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor,
    order: Tensor, slot: Tensor, size: Tensor, lse: Tensor, first: int, length: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """factor times the gradients of images and texts first .. first + length - 1, and of logit_scale through those."""
    with torch.autocast(images.device.type, enabled=False):
        backend = _backend(impl, images, texts, image_norms, text_norms, logit_scale)
        for_images, for_texts, for_scale = backend.gradient(
            factor, Captions(order, slot, size), lse, slice(first, first + length)
        )
    return for_images.to(images.dtype), for_texts.to(texts.dtype), for_scale


@_backward.register_fake
def _(
    factor: Tensor, logit_scale: Tensor, images: Tensor, texts: Tensor, image_norms: Tensor, text_norms: Tensor,
    order: Tensor, slot: Tensor, size: Tensor, lse: Tensor, first: int, length: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape = length, images.shape[1]
    return images.new_empty(shape), texts.new_empty(shape), logit_scale.new_empty(())


def _save(ctx, inputs, output) -> None:
    image_features, _, *tensors, ctx.first, ctx.world_size, ctx.impl = inputs
    ctx.length = len(image_features)
    ctx.save_for_backward(*tensors)


def _gradient(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    factor = gradient * ctx.world_size  # undoes the mean over ranks
    gradients = torch.ops.stablerep.image_text_loss_backward(
        factor, *ctx.saved_tensors, ctx.first, ctx.length, ctx.impl
    )
    return *gradients, *[None] * 11


_loss.register_autograd(_gradient, setup_context=_save)
