"""A UNet and a VAE decoder as a network: a walk along their modules, as diffusers' forward goes."""

from __future__ import annotations

from typing import Any

import torch

from stablerep.engines.native import weights
from stablerep.engines.native.network import FeatureMap, Network, require

BLOCKS = (
    "CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", "CrossAttnUpBlock2D",
    "UpBlock2D", "UpDecoderBlock2D",
)  # fmt: skip
UNUSED = (
    "addition_embed_type", "center_input_sample", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim",
    "time_embedding_act_fn",
)  # fmt: skip


def unet_network(unet: Any, height: int, width: int, tokens: int) -> Network:
    """The UNet from conv_in to conv_out; slot 0 is its input, slot 1 its output.

    Raises:
        UnsupportedModuleError: a layer that these steps cannot express.
    """
    config = unet.config
    for name in UNUSED:
        require(not config.get(name), f"{name} {config.get(name)}")
    require(unet.conv_norm_out is not None, "no norm at its end")
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        require(type(block).__name__ in BLOCKS, f"a block of another kind: {type(block).__name__}")
    net = _begin(unet.conv_in, unet.conv_out, height, width, 1)
    net.tokens = tokens
    x = net.conv(unet.conv_in, FeatureMap(0, weights.rounded(config.in_channels), height, width, True))
    skips = [x]

    def follow(after: FeatureMap) -> None:
        nonlocal x
        if x not in skips:
            net.free(x)
        x = after

    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            follow(net.resnet(resnet, x))
            if attention is not None:
                follow(net.transformer(attention, x))
            skips.append(x)
        for layer in block.downsamplers or []:
            follow(net.downsample(layer, x))
            skips.append(x)
    middle = unet.mid_block
    follow(net.resnet(middle.resnets[0], x))
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            follow(net.transformer(attention, x))
        follow(net.resnet(resnet, x))
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            skip = skips.pop()
            follow(net.concat(x, skip))
            net.free(skip)
            follow(net.resnet(resnet, x))
            if attention is not None:
                follow(net.transformer(attention, x))
        for layer in block.upsamplers or []:
            follow(net.upsample(layer, x))
    _end(net, unet.conv_norm_out, unet.conv_out, x)
    return net


def decoder_network(module: Any, height: int, width: int) -> Network:
    """A VAE's decoder (engines.module.Decoder), from latents as the denoising loop leaves them; slots as above.

    Raises:
        UnsupportedModuleError: a layer that these steps cannot express.
    """
    decoder, quant = module.decoder, module.post_quant_conv
    net = _begin(
        decoder.conv_in if quant is None else quant, decoder.conv_out, height, width, 2 ** (len(decoder.up_blocks) - 1)
    )
    net.shared = False
    latents = FeatureMap(0, net.slots[0][1], height, width, False)
    matrix, bias = torch.eye(latents.channels), None
    if quant is not None:
        matrix, bias = weights.matrix(quant), weights.bias([quant])
    x = net.product(matrix / module.scaling_factor, bias, latents)

    def follow(after: FeatureMap) -> None:
        nonlocal x
        net.free(x)
        x = after

    follow(net.conv(decoder.conv_in, x))
    middle = decoder.mid_block
    follow(net.resnet(middle.resnets[0], x))
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            normal = net.group_norm(attention.group_norm, x)
            require(attention.residual_connection, "attention without a residual connection")
            x = net.attention(attention, normal, x)
            net.free(normal)
        follow(net.resnet(resnet, x))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            follow(net.resnet(resnet, x))
        for layer in block.upsamplers or []:
            follow(net.upsample(layer, x))
    _end(net, decoder.conv_norm_out, decoder.conv_out, x)
    return net


def _begin(conv_in: Any, conv_out: Any, height: int, width: int, factor: int) -> Network:
    net = Network()
    net.slots.append((height * width, weights.rounded(conv_in.in_channels), True))  # a decoder has but one half
    net.slots.append((height * width * factor**2, weights.rounded(conv_out.out_channels), False))
    return net


def _end(net: Network, norm: Any, conv: Any, x: FeatureMap) -> None:
    assert x.height * x.width == net.slots[1][0]
    net.conv(conv, x, norm, out=FeatureMap(1, net.slots[1][1], x.height, x.width, False))
