"""The engine for the CPU: a UNet and a VAE decoder as one call each of our own code (csrc/network.h).

A picture's numbers are the same whatever the batch, its neighbours and the threads are. Where guidance gives the UNet
every picture twice, what lies before the first cross-attention is computed once; texts and timesteps, the same few
over and over, are prepared once.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep import native
from stablerep.config import UserError
from stablerep.engines.module import CompiledModule, ModuleSpec
from stablerep.engines.native import weights
from stablerep.engines.native.architectures import decoder_network, unet_network
from stablerep.engines.native.network import Network, TextProjection, UnsupportedModuleError

WHY_NOT_CAPTURABLE = "the native engine runs on the CPU"
MOST_WEIGHTS = 100_000_000  # beyond, the convolutions' transformed weights, four times as many, fill the memory


def why_not(spec: ModuleSpec) -> str | None:
    """Why a module cannot run by this engine, as far as one can tell without trying."""
    if spec.device.type != "cpu" or spec.dtype != torch.float32:
        return f"it computes in float32 on the CPU, not in {str(spec.dtype).removeprefix('torch.')} on {spec.device}"
    if reason := native.why_not("cpu"):
        return reason
    count = sum(value.numel() for value in spec.module.parameters())
    if count > MOST_WEIGHTS:
        return f"the {spec.name} has {count / 1e6:.0f} M weights, and it is made for at most {MOST_WEIGHTS / 1e6:.0f} M"
    return None


@functools.cache
def digest() -> str:
    """Sixteen hex digits over the code that makes this engine's numbers: the compiled module and what drives it."""
    compiled = native.module().__file__
    assert compiled is not None
    files = [Path(compiled), *sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


@torch.inference_mode()
def open_module(spec: ModuleSpec, lanes: int = 0) -> CompiledModule:
    """One module, ready to run in vectors of so many floats; 0: as many as the processor has.

    Raises:
        UserError: it cannot run here, or has what this engine does not support.
    """
    if reason := why_not(spec):
        raise UserError(f"--engine native cannot run: {reason}")
    try:
        return _Unet(spec, lanes) if spec.name == "unet" else _Decoder(spec, lanes)
    except UnsupportedModuleError as reason:
        raise UserError(f"--engine native cannot run: the {spec.name} has {reason}; take --engine torch") from None


class _Unet(CompiledModule):
    why_not_capturable = WHY_NOT_CAPTURABLE

    def __init__(self, spec: ModuleSpec, lanes: int) -> None:
        unet: Any = spec.module.unet
        channels, height, width = spec.row_shapes["latents"]
        if added := [name for name in spec.row_shapes if name not in ("latents", "timestep", "text")]:
            raise UnsupportedModuleError(f"the input {added[0]}")
        tokens, _ = spec.row_shapes["text"]
        self._module, network = unet, unet_network(unet, height, width, tokens)
        size = (height, width)
        self._run = _NetworkRunner(network, (channels, *size), (unet.config.out_channels, *size), lanes)
        self._projections, blocks = network.texts, network.time
        self._time_weight = torch.cat([block.time_emb_proj.weight for block in blocks])
        self._time_bias = torch.cat([block.time_emb_proj.bias + block.conv1.bias for block in blocks])
        self._time_biases: dict[float, Tensor] = {}
        self._text: _ProjectedText | None = None

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        text = inputs["text"]
        if self._text is None or not torch.equal(text, self._text.text):
            self._text = _project(self._projections, text)
        return self._run(inputs["latents"], self._time_bias_of(inputs["timestep"]), self._text)

    def _time_bias_of(self, timestep: Tensor) -> Tensor:  # [all residual blocks' channels], added after their conv1
        known = self._time_biases.get(number := float(timestep))
        if known is None:
            sines = self._module.get_time_embed(self._time_bias[:1], timestep.reshape(1))
            embedding = F.silu(self._module.time_embedding(sines))
            known = self._time_biases[number] = F.linear(embedding, self._time_weight, self._time_bias)[0].contiguous()
        return known


class _Decoder(CompiledModule):
    why_not_capturable = WHY_NOT_CAPTURABLE

    def __init__(self, spec: ModuleSpec, lanes: int) -> None:
        _, height, width = spec.row_shapes["latents"]
        for name in ("latents_mean", "latents_std", "shift_factor"):
            if spec.config.get(name):
                raise UnsupportedModuleError(f"{name} {spec.config[name]}")
        module: Any = spec.module
        factor = 2 ** (len(module.decoder.up_blocks) - 1)
        size, channels = (factor * height, factor * width), module.decoder.conv_out.out_channels
        self._run = _NetworkRunner(
            decoder_network(module, height, width), spec.row_shapes["latents"], (channels, *size), lanes
        )

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        return self._run(inputs["latents"])


@dataclass(frozen=True)
class _ProjectedText:
    """Keys and values of a batch's texts in every cross-attention; rows of the same text share an entry."""

    text: Tensor  # [B, T, D]
    keys: list[Tensor]  # a layer: [U, heads, width, T rounded up]
    values: list[Tensor]  # [U, T, heads * width]
    rows: Tensor  # [B] int64, which entry


def _project(layers: list[TextProjection], text: Tensor) -> _ProjectedText:
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
    return _ProjectedText(text.clone(), keys, values, torch.tensor(rows))


class _NetworkRunner:
    """A network at work on batches of any size."""

    def __init__(
        self, network: Network, latent_shape: tuple[int, ...], output_shape: tuple[int, ...], lanes: int
    ) -> None:
        self._latent_shape, self._output_shape = latent_shape, output_shape
        self._network = network  # the compiled steps point at its weights
        self._compiled = network.open(lanes)

    def __call__(self, latents: Tensor, time: Tensor | None = None, text: _ProjectedText | None = None) -> Tensor:
        rows = len(latents)
        if latents.shape[1:] != self._latent_shape or (text is not None and len(text.rows) != rows):
            raise ValueError(f"made for latents {list(self._latent_shape)} and a text each, got {list(latents.shape)}")
        half = rows // 2
        twice = text is not None and rows == 2 * half > 0 and torch.equal(latents[:half], latents[half:])
        pictures = half if twice else rows
        # [B, H, W, C] is what channels_last tensors are in memory.
        latents = latents[:pictures].permute(0, 2, 3, 1).contiguous()
        channels, height, width = self._output_shape
        output = torch.empty((rows, height, width, channels))
        self._compiled.run(
            input=latents.data_ptr(),
            output=output.data_ptr(),
            time_bias=0 if time is None else time.data_ptr(),
            keys=[] if text is None else [each.data_ptr() for each in text.keys],
            values=[] if text is None else [each.data_ptr() for each in text.values],
            text_rows=0 if text is None else text.rows.data_ptr(),
            pictures=pictures,
            in_channels=latents.shape[-1],
            out_channels=channels,
            halves=2 if twice else 1,
            threads=torch.get_num_threads(),
        )
        return output.permute(0, 3, 1, 2)
