"""What diffusers' modules do, as the steps of csrc/network.h."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from stablerep import native
from stablerep.engines.native import weights

LANES = weights.LANES


class UnsupportedModuleError(Exception):
    """Why a model cannot be written in these steps."""


@dataclass(frozen=True)
class FeatureMap:
    """What a picture is at some place of the network: columns of a slot."""

    slot: int
    channels: int
    height: int
    width: int
    shared: bool  # the same in both halves of a guided batch
    offset: int = 0


@dataclass
class TextProjection:
    """A cross-attention's way from text embeddings to keys and values."""

    attention: Attention
    head_width: int  # rounded up


@dataclass
class Network:
    """The steps so far; `open` makes them run."""

    slots: list[tuple[int, int, bool]] = field(default_factory=list)  # pixels, channels, shared
    steps: list[Any] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # weights, which the steps point at
    time: list[ResnetBlock2D] = field(default_factory=list)  # whose biases follow the timestep
    texts: list[TextProjection] = field(default_factory=list)
    tokens: int = 0  # of a text
    shared: bool = True  # until the first cross-attention, both halves of a guided batch are the same
    unused: list[FeatureMap] = field(default_factory=list)

    def open(self, lanes: int = 0) -> Any:
        """The compiled network, in vectors of so many floats; 0: as many as the processor has."""
        module = native.module()
        return module.Network([module.NetworkSlot(*slot) for slot in self.slots], self.steps, lanes)

    def map(self, channels: int, height: int, width: int) -> FeatureMap:
        """Room for a result; what was freed is taken first, so that it is still in the cache."""
        for number, old in enumerate(self.unused):
            if (old.channels, old.height, old.width, old.shared) == (channels, height, width, self.shared):
                return self.unused.pop(number)
        self.slots.append((height * width, channels, self.shared))
        return FeatureMap(len(self.slots) - 1, channels, height, width, self.shared)

    def free(self, *maps: FeatureMap) -> None:
        self.unused += [replace(old, offset=0) for old in maps]

    def step(
        self, kind: str, x: FeatureMap, out: FeatureMap, *, residual: FeatureMap | None = None, **fields: Any
    ) -> FeatureMap:
        module = native.module()
        step = module.NetworkStep()
        step.kind = getattr(module.StepKind, kind)
        step.shared = self.shared
        step.height, step.width = x.height, x.width
        step.in_channels, step.out_channels = x.channels, out.channels
        step.in_, step.out = (module.NetworkView(each.slot, each.offset) for each in (x, out))
        if residual is not None:
            step.residual = module.NetworkView(residual.slot, residual.offset)
        for name, value in fields.items():
            if isinstance(value, Tensor):
                value = value.float().contiguous()
                self.kept.append(value)
                value = value.data_ptr()
            elif isinstance(value, FeatureMap):
                value = module.NetworkView(value.slot, value.offset)
            setattr(step, name, value)
        self.steps.append(step)
        return out

    # From here on: what a module does.

    def linear(
        self, layers: list[Any], x: FeatureMap, residual: FeatureMap | None = None, out: FeatureMap | None = None
    ) -> FeatureMap:
        """Linear layers or 1 x 1 convolutions of the same input, side by side."""
        matrices = [weights.matrix(layer) for layer in layers]
        return self.product(torch.cat(matrices, 1), weights.bias(layers), x, residual, out)

    def product(
        self,
        matrix: Tensor,
        bias: Tensor | None,
        x: FeatureMap,
        residual: FeatureMap | None = None,
        out: FeatureMap | None = None,
    ) -> FeatureMap:
        out = out or self.map(matrix.shape[1], x.height, x.width)
        biases = {} if bias is None else {"bias": bias}
        return self.step("matmul", x, out, residual=residual, weights=weights.panels(matrix), **biases)

    def conv(
        self,
        conv: nn.Conv2d,
        x: FeatureMap,
        norm: nn.GroupNorm | None = None,
        *,
        residual: FeatureMap | None = None,
        out: FeatureMap | None = None,
        upsample: bool = False,
        **fields: Any,
    ) -> FeatureMap:
        """A 3 x 3 convolution with what surrounds it: group norm and SiLU before, an addition after."""
        require(
            conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
            and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros",
            f"a convolution of another kind: {conv}",
        )  # fmt: skip
        factor = 2 if upsample else 1
        if norm is not None:
            fields |= _norm(norm) | {"silu": True}
        if "time_bias" not in fields and conv.bias is not None:
            fields["bias"] = weights.padded(conv.bias)
        out = out or self.map(weights.rounded(conv.out_channels), factor * x.height, factor * x.width)
        fields |= {"height": factor * x.height, "width": factor * x.width, "upsample": upsample}
        return self.step("conv3x3", x, out, residual=residual, weights=weights.winograd(conv), **fields)

    def resnet(self, block: Any, x: FeatureMap) -> FeatureMap:
        require(
            type(block) is ResnetBlock2D and block.upsample is None and block.downsample is None
            and (block.time_emb_proj is None or block.time_embedding_norm == "default") and not block.skip_time_act
            and block.output_scale_factor == 1 and isinstance(block.nonlinearity, nn.SiLU)
            and block.in_channels % LANES == 0 and block.out_channels % LANES == 0,
            f"a residual block of another kind: {type(block).__name__}",
        )  # fmt: skip
        fields: dict[str, Any] = {}
        if block.time_emb_proj is not None:
            fields["time_bias"] = sum(earlier.out_channels for earlier in self.time)
            self.time.append(block)
        hidden = self.conv(block.conv1, x, block.norm1, **fields)
        residual, out = x, None
        if block.conv_shortcut is not None:
            require(block.conv_shortcut.kernel_size == (1, 1), "a shortcut that is no 1 x 1 convolution")
            residual = out = self.linear([block.conv_shortcut], x)
        out = self.conv(block.conv2, hidden, block.norm2, residual=residual, out=out)
        self.free(hidden)
        return out

    def downsample(self, layer: Any, x: FeatureMap) -> FeatureMap:
        conv: Any = getattr(layer, "conv", None)
        require(
            type(layer) is Downsample2D and isinstance(conv, nn.Conv2d) and layer.norm is None
            and conv.kernel_size == (3, 3) and conv.stride == (2, 2) and conv.padding == (1, 1),
            "a downsampling of another kind",
        )  # fmt: skip
        out = self.map(conv.out_channels, (x.height + 1) // 2, (x.width + 1) // 2)
        matrix = conv.weight.float().permute(2, 3, 1, 0).flatten(0, 2)
        return self.step("conv3x3_stride2", x, out, weights=weights.panels(matrix), bias=conv.bias)

    def upsample(self, layer: Any, x: FeatureMap) -> FeatureMap:
        require(
            type(layer) is Upsample2D and layer.use_conv and layer.interpolate and layer.norm is None,
            "an upsampling of another kind",
        )
        return self.conv(layer.conv if layer.name == "conv" else layer.Conv2d_0, x, upsample=True)

    def group_norm(self, norm: nn.GroupNorm, x: FeatureMap) -> FeatureMap:
        return self.step("group_norm", x, self.map(x.channels, x.height, x.width), **_norm(norm))

    def layer_norm(self, norm: Any, x: FeatureMap) -> FeatureMap:
        require(type(norm) is nn.LayerNorm and norm.elementwise_affine, "a norm of tokens of another kind")
        out = self.map(x.channels, x.height, x.width)
        bias = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        return self.step("layer_norm", x, out, norm_weight=norm.weight, norm_bias=bias, eps=norm.eps)

    def attention(self, layer: Any, x: FeatureMap, residual: FeatureMap, *, to_text: bool = False) -> FeatureMap:
        """Attention among the tokens of x or to the text; residual is taken over where that is possible."""
        require(
            type(layer) is Attention and type(layer.processor) is AttnProcessor2_0 and layer.rescale_output_factor == 1
            and layer.norm_q is None and layer.norm_k is None and not layer.norm_cross and layer.spatial_norm is None
            and layer.added_kv_proj_dim is None and layer.inner_kv_dim == layer.inner_dim,
            "attention of another kind",
        )  # fmt: skip
        true_width = layer.inner_dim // layer.heads
        width = weights.rounded(true_width)
        fields: dict[str, Any] = {"heads": layer.heads, "scale": 1 / math.sqrt(true_width)}
        names = ("to_q",) if to_text else ("to_q", "to_k", "to_v")
        layers = [getattr(layer, name) for name in names]
        matrix = torch.cat([weights.by_head(weights.matrix(each), layer.heads, width) for each in layers], 1)
        bias = weights.bias(layers)
        if bias is not None:
            bias = weights.by_head(bias[None], len(layers) * layer.heads, width)[0]
        projected = self.product(matrix, bias, x)
        inner = layer.heads * width
        if to_text:
            fields |= {"text": len(self.texts), "keys": self.tokens}
            self.texts.append(TextProjection(layer, width))
            self.shared = False
        else:
            fields |= {"key": replace(projected, offset=inner), "value": replace(projected, offset=2 * inner)}
        attended = self.map(inner, x.height, x.width)
        self.step("attention", replace(projected, channels=inner), attended, **fields)
        self.free(projected)
        matrix = weights.by_head(weights.matrix(layer.to_out[0]).t(), layer.heads, width).t()
        out = residual if residual.shared == self.shared else None
        out = self.product(matrix, layer.to_out[0].bias, attended, residual, out)
        self.free(attended)
        return out

    def transformer(self, model: Any, x: FeatureMap) -> FeatureMap:
        require(
            type(model) is Transformer2DModel and model.is_input_continuous and model.inner_dim % LANES == 0,
            f"a transformer of another kind: {type(model).__name__}",
        )
        normal = self.group_norm(model.norm, x)
        hidden = self.linear([model.proj_in], normal)
        self.free(normal)
        for block in model.transformer_blocks:
            hidden = self.transformer_block(block, hidden)
        out = self.linear([model.proj_out], hidden, residual=x)
        self.free(hidden)
        return out

    def transformer_block(self, block: Any, hidden: FeatureMap) -> FeatureMap:
        require(
            type(block) is BasicTransformerBlock and block.norm_type == "layer_norm" and block.pos_embed is None
            and not block.only_cross_attention and block.attn2 is not None and block.attn2.is_cross_attention
            and not hasattr(block, "fuser") and type(block.ff.net[0]) is GEGLU,
            "a transformer block of another kind",
        )  # fmt: skip
        for norm, layer, to_text in ((block.norm1, block.attn1, False), (block.norm2, block.attn2, True)):
            normal = self.layer_norm(norm, hidden)
            after = self.attention(layer, normal, hidden, to_text=to_text)
            self.free(normal, *([hidden] if after != hidden else []))
            hidden = after
        normal = self.layer_norm(block.norm3, hidden)
        proj, narrow = block.ff.net[0].proj, block.ff.net[2]
        wide = self.map(proj.out_features // 2, hidden.height, hidden.width)
        halves = weights.matrix(proj).chunk(2, 1)
        bias = torch.zeros(proj.out_features) if proj.bias is None else proj.bias
        self.step("geglu", normal, wide, weights=torch.cat([weights.panels(half) for half in halves]), bias=bias)
        self.linear([narrow], wide, residual=hidden, out=hidden)
        self.free(normal, wide)
        return hidden

    def concat(self, *maps: FeatureMap) -> FeatureMap:
        out = self.map(sum(each.channels for each in maps), maps[0].height, maps[0].width)
        offset = 0
        for each in maps:
            require((each.height, each.width) == (out.height, out.width), "a size that halving does not divide")
            self.step("copy", each, replace(out, offset=offset, channels=each.channels))
            offset += each.channels
        return out


def _norm(norm: Any) -> dict[str, Any]:
    require(type(norm) is nn.GroupNorm and norm.affine, f"a norm of another kind: {type(norm).__name__}")
    return {"norm_weight": norm.weight, "norm_bias": norm.bias, "groups": norm.num_groups, "eps": norm.eps}


def require(fits: bool, reason: str) -> None:
    if not fits:
        raise UnsupportedModuleError(reason)
