"""A diffusers pipeline's weights under the names of CompVis (SD 1.x) and SGM (SDXL), as single files have them.

Written from the layouts themselves (openaimodel.py, model.py of CompVis and open_clip), not from diffusers' converter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
OUTER = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
PROJECTIONS = ("q_proj", "k_proj", "v_proj")  # in one matrix, in this order
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def unet_names(unet: Any) -> dict[str, str]:
    """By the beginning of a diffusers name, the beginning of the original's."""
    layers = unet.config.layers_per_block
    names = dict(OUTER)
    for i, block in enumerate(unet.down_blocks):
        for j in range(layers):
            at = f"input_blocks.{i * (layers + 1) + j + 1}"
            names |= {f"down_blocks.{i}.resnets.{j}": f"{at}.0", f"down_blocks.{i}.attentions.{j}": f"{at}.1"}
        if block.downsamplers:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * (layers + 1)}.0.op"
    for i, block in enumerate(unet.up_blocks):
        attends = hasattr(block, "attentions")
        for j in range(layers + 1):
            at = f"output_blocks.{i * (layers + 1) + j}"
            names |= {f"up_blocks.{i}.resnets.{j}": f"{at}.0", f"up_blocks.{i}.attentions.{j}": f"{at}.1"}
        if block.upsamplers:
            last = f"output_blocks.{i * (layers + 1) + layers}"
            names[f"up_blocks.{i}.upsamplers.0.conv"] = f"{last}.{2 if attends else 1}.conv"
    return names


def vae_names(vae: Any) -> dict[str, str]:
    names: dict[str, str] = {}
    count = len(vae.config.block_out_channels)
    for coder, blocks, side in (("encoder", "down", "down"), ("decoder", "up", "up")):
        for i in range(count):
            ours, theirs = f"{coder}.{blocks}_blocks.{i}", f"{coder}.{side}.{i if side == 'down' else count - 1 - i}"
            names |= {f"{ours}.resnets": f"{theirs}.block", f"{ours}.{side}samplers.0": f"{theirs}.{side}sample"}
        names |= {f"{coder}.mid_block.resnets.{n}": f"{coder}.mid.block_{n + 1}" for n in range(2)}
        names[f"{coder}.mid_block.attentions.0"] = f"{coder}.mid.attn_1"
        names[f"{coder}.conv_norm_out"] = f"{coder}.norm_out"
    return names


def renamed(state: dict[str, Tensor], prefix: str, rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {prefix + rename(name): weight.clone() for name, weight in state.items()}


def unet_name(unet: Any) -> Callable[[str], str]:
    """The original's name of a layer or weight of the UNet."""
    names = unet_names(unet)

    def rename(name: str) -> str:
        start = next(start for start in names if name == start or name.startswith(start + "."))
        rest = name[len(start) :]
        for ours, theirs in RESNET.items() if "resnets" in start else ():
            rest = rest.replace(f".{ours}", f".{theirs}")
        return names[start] + rest

    return rename


def vae_weights(vae: Any) -> dict[str, Tensor]:
    names, made = vae_names(vae), {}
    for name, weight in vae.state_dict().items():
        new = next((names[start] + name[len(start) :] for start in names if name.startswith(start + ".")), name)
        new = new.replace("conv_shortcut", "nin_shortcut")
        if "attn_1" in new:
            for ours, theirs in ATTENTION.items():
                new = new.replace(f".{ours}.", f".{theirs}.")
            weight = weight[:, :, None, None] if weight.ndim == 2 else weight  # there a convolution of 1 x 1
        made["first_stage_model." + new] = weight.clone()
    return made


def open_clip_weights(encoder: Any) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    inputs: dict[str, dict[str, Tensor]] = {}
    outer = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    for name, weight in encoder.state_dict().items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            made["text_projection"] = weight.T.contiguous()
        elif name in outer:
            made[outer[name]] = weight.clone()
        else:
            new = name.replace("encoder.layers.", "transformer.resblocks.")
            layer, _, kind = new.rpartition(".")
            if layer.endswith(PROJECTIONS):
                inputs.setdefault(f"{layer[:-7].replace('self_attn', 'attn')}.in_proj_{kind}", {})[layer[-6:]] = weight
                continue
            for ours, theirs in OPEN_CLIP.items():
                new = new.replace(ours, theirs)
            made[new] = weight.clone()
    joined = {name: torch.cat([parts[each] for each in PROJECTIONS]) for name, parts in inputs.items()}
    return {f"conditioner.embedders.1.model.{name}": weight for name, weight in (made | joined).items()}


def checkpoint(pipeline: Any) -> dict[str, Tensor]:
    """All weights of a pipeline as its single file has them."""
    xl = hasattr(pipeline, "text_encoder_2")
    made = renamed(pipeline.unet.state_dict(), "model.diffusion_model.", unet_name(pipeline.unet))
    made |= vae_weights(pipeline.vae)
    nested = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    made |= renamed(
        pipeline.text_encoder.state_dict(), nested, lambda name: "text_model." + name.removeprefix("text_model.")
    )
    return made | (open_clip_weights(pipeline.text_encoder_2) if xl else {})
