"""The engine for the CPU: a UNet and a VAE decoder as one call each of our own code (csrc/network.h).

A picture's numbers are the same whatever the batch, its neighbours and the threads are. Where guidance gives the UNet
every picture twice, what lies before the first look at the text is computed once; texts and timesteps, the same few
over and over, are prepared once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep import native
from stablerep.config import UserError
from stablerep.engines.native import weights
from stablerep.engines.native.architectures import decoder_network, unet_network
from stablerep.engines.native.network import Network, Text, Unfit
from stablerep.engines.parts import Part
from stablerep.engines.verify import Run

MOST_WEIGHTS = 100_000_000  # beyond, the convolutions' transformed weights, four times as many, fill the memory


def why_not(part: Part) -> str | None:
    """Why a part cannot run by this engine, as far as one can tell without trying."""
    if part.device.type != "cpu" or part.dtype != torch.float32:
        return f"it computes in float32 on the CPU, not in {str(part.dtype).removeprefix('torch.')} on {part.device}"
    if reason := native.why_not("cpu"):
        return reason
    count = sum(value.numel() for value in part.module.parameters())
    if count > MOST_WEIGHTS:
        return f"the {part.name} has {count / 1e6:.0f} M weights, and it is made for at most {MOST_WEIGHTS / 1e6:.0f} M"
    return None


@torch.inference_mode()
def open_part(part: Part) -> Run:
    """One part, ready to run.

    Raises:
        UserError: it cannot run here, or has what this engine has no word for.
    """
    if reason := why_not(part):
        raise UserError(f"--engine native cannot run: {reason}")
    try:
        return _Unet(part) if part.name == "unet" else _Decoder(part)
    except Unfit as reason:
        raise UserError(f"--engine native cannot run: the {part.name} has {reason}; take --engine torch") from None


class _Unet:
    def __init__(self, part: Part) -> None:
        unet: Any = part.module.unet
        channels, height, width = part.row_shapes["latents"]
        if added := [name for name in part.row_shapes if name not in ("latents", "timestep", "text")]:
            raise Unfit(f"the input {added[0]}")
        tokens, _ = part.row_shapes["text"]
        self._module, self._network = unet, unet_network(unet, height, width, tokens)
        size = (height, width)
        self._opened = _Opened(self._network, (channels, *size), (unet.config.out_channels, *size))
        blocks = self._network.time
        self._time_weight = torch.cat([block.time_emb_proj.weight for block in blocks])
        self._time_bias = torch.cat([block.time_emb_proj.bias + block.conv1.bias for block in blocks])
        self._times: dict[float, Tensor] = {}
        self._told: _Told | None = None

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        text = inputs["text"]
        if self._told is None or not torch.equal(text, self._told.text):
            self._told = _tell(self._network.texts, text)
        return self._opened(inputs["latents"], self._time(inputs["timestep"]), self._told)

    def _time(self, timestep: Tensor) -> Tensor:  # [all residual blocks' channels]: what is added after their conv1
        known = self._times.get(number := float(timestep))
        if known is None:
            sines = self._module.get_time_embed(self._time_bias[:1], timestep.reshape(1))
            embedding = F.silu(self._module.time_embedding(sines))
            known = self._times[number] = F.linear(embedding, self._time_weight, self._time_bias)[0].contiguous()
        return known


class _Decoder:
    def __init__(self, part: Part) -> None:
        _, height, width = part.row_shapes["latents"]
        for name in ("latents_mean", "latents_std", "shift_factor"):
            if part.config.get(name):
                raise Unfit(f"{name} {part.config[name]}")
        module: Any = part.module
        factor = 2 ** (len(module.decoder.up_blocks) - 1)
        size, channels = (factor * height, factor * width), module.decoder.conv_out.out_channels
        self._opened = _Opened(decoder_network(module, height, width), part.row_shapes["latents"], (channels, *size))

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        return self._opened(inputs["latents"])


@dataclass(frozen=True)
class _Told:
    """A batch's texts, as the cross-attentions want them; rows of the same text share an entry."""

    text: Tensor  # [B, T, D]
    keys: list[Tensor]  # a layer: [U, heads, width, T rounded up]
    values: list[Tensor]  # [U, T, heads * width]
    rows: Tensor  # [B] int64, which entry


def _tell(layers: list[Text], text: Tensor) -> _Told:
    entries: dict[bytes, int] = {}
    rows = [entries.setdefault(row.numpy().tobytes(), len(entries)) for row in text]
    different = text[[rows.index(entry) for entry in range(len(entries))]]
    keys, values = [], []
    for layer in layers:
        heads, width = layer.attention.heads, layer.head_width
        key, value = (project(different).flatten(0, 1) for project in (layer.attention.to_k, layer.attention.to_v))
        key = weights.by_head(key, heads, width).unflatten(0, (len(different), -1)).transpose(1, 2)
        keys.append(weights.padded(key).contiguous())
        values.append(weights.by_head(value, heads, width).contiguous())
    return _Told(text.clone(), keys, values, torch.tensor(rows))


class _Opened:
    """A network at work on batches of any size."""

    def __init__(self, network: Network, latent_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        self._latent_shape, self._output_shape = latent_shape, output_shape
        self._network = network  # its weights are pointed at
        self._opened = network.open()

    def __call__(self, latents: Tensor, time: Tensor | None = None, told: _Told | None = None) -> Tensor:
        rows = len(latents)
        if latents.shape[1:] != self._latent_shape or (told is not None and len(told.rows) != rows):
            raise ValueError(f"made for latents {list(self._latent_shape)} and a text each, got {list(latents.shape)}")
        half = rows // 2
        twice = told is not None and rows == 2 * half > 0 and torch.equal(latents[:half], latents[half:])
        pictures = half if twice else rows
        # [B, H, W, C] is what channels_last tensors are in memory.
        latents = latents[:pictures].permute(0, 2, 3, 1).contiguous()
        channels, height, width = self._output_shape
        output = torch.empty((rows, height, width, channels))
        self._opened.run(
            input=latents.data_ptr(),
            output=output.data_ptr(),
            time_bias=0 if time is None else time.data_ptr(),
            keys=[] if told is None else [each.data_ptr() for each in told.keys],
            values=[] if told is None else [each.data_ptr() for each in told.values],
            text_rows=0 if told is None else told.rows.data_ptr(),
            pictures=pictures,
            in_channels=latents.shape[-1],
            out_channels=channels,
            halves=2 if twice else 1,
            threads=torch.get_num_threads(),
        )
        return output.permute(0, 3, 1, 2)
