"""What the VAE makes of the photos, once; and what the text encoder makes of their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep.engines.conditioning import Conditioning

THUMBNAIL = 16  # pixels a side
DRAWN_AGAIN = 32  # pictures, to see how well the VAE does it


class Model(Protocol):
    """An opened pipeline, in diffusers' names; generate.pipeline.Pipeline is one."""

    unet: Any
    vae: Any
    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any
    scheduler_config: dict[str, Any]
    weights_hash: str
    force_zeros_for_empty_prompt: bool

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    @property
    def embeds_guidance(self) -> bool: ...

    def embed(self, prompts: list[str], *, zero_empty: bool = False) -> Conditioning: ...

    def is_cut(self, prompt: str) -> bool: ...


OpenModel = Callable[[str, torch.device, torch.dtype, str | None], Any]  # a Model


@dataclass(frozen=True)
class Latents:
    """N pictures as the UNet sees them, on the host."""

    mean: Tensor  # [N, V, C, h, w] float32: of the VAE's posterior, scaled
    deviation: Tensor  # the same shape
    thumbnails: Tensor  # [N, 3, 16, 16] float32, 0 to 1, of the first view
    captions: tuple[str, ...]  # [N]
    vae_error: float  # mean squared, of what the VAE draws again, pixels from 0 to 1

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def psnr(self) -> float:  # decibels
        return -10 * float(torch.tensor(max(self.vae_error, 1e-10)).log10())


@torch.no_grad()
def encode_pictures(vae: Any, pictures: Iterable[tuple[str, Tensor]]) -> Latents:
    """Encode the views of each picture, uint8 [V, 3, H, W], with its caption."""
    means, deviations, thumbnails = list[Tensor](), list[Tensor](), list[Tensor]()
    captions, errors = list[str](), list[float]()
    for caption, views in pictures:
        pixels = as_input(views).to(vae.device, vae.dtype)
        posterior = vae.encode(pixels).latent_dist
        mean, deviation = scaled(vae, posterior.mean), scaled(vae, posterior.std, is_deviation=True)
        if len(errors) < DRAWN_AGAIN:
            drawn = vae.decode(posterior.mean[:1]).sample
            errors.append(F.mse_loss(drawn.clamp(-1, 1), pixels[:1]).item() / 4)
        means.append(mean.float().cpu())
        deviations.append(deviation.float().cpu())
        thumbnails.append(thumbnail(views[:1])[0])
        captions.append(caption)
    return Latents(
        torch.stack(means), torch.stack(deviations), torch.stack(thumbnails), tuple(captions), sum(errors) / len(errors)
    )


def as_input(pixels: Tensor) -> Tensor:
    """uint8 to float32 from -1 to 1, as a VAE takes it."""
    return pixels.float() / 127.5 - 1


def thumbnail(pixels: Tensor) -> Tensor:  # uint8 [N, 3, H, W] to float32 [N, 3, 16, 16] from 0 to 1
    return F.interpolate(pixels.float() / 255, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)


def scaled(vae: Any, latents: Tensor, *, is_deviation: bool = False) -> Tensor:
    """What the VAE says as the UNet takes it: the inverse of engines.torch.Decoder's first lines."""
    config, offset = vae.config, 0.0 if is_deviation else 1.0
    latents = latents - offset * (config.shift_factor or 0.0)
    if config.latents_mean is None or config.latents_std is None:
        return latents * config.scaling_factor
    mean, std = (latents.new_tensor(each).reshape(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std))
    return (latents - offset * mean) * config.scaling_factor / std


class Captions:
    """Each different caption's conditioning, computed once, or anew each time where the text encoder learns."""

    def __init__(self, model: Model, texts: Sequence[str], *, learns: bool) -> None:
        self._model, self._learns = model, learns
        self._numbers = {text: number for number, text in enumerate(dict.fromkeys(["", *texts]))}
        if not learns:
            with torch.no_grad():
                blocks = [self._embed(block) for block in _blocks(list(self._numbers), 64)]
            self._cache = blocks[0]
            for block in blocks[1:]:
                self._cache = self._cache.cat(block)

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        if self._learns:
            return self._embed(list(texts))
        rows = torch.tensor([self._numbers[text] for text in texts], device=self._cache.device)
        return self._cache[rows]

    def _embed(self, texts: list[str]) -> Conditioning:
        return self._model.embed(texts, zero_empty=self._model.force_zeros_for_empty_prompt)


def _blocks(texts: list[str], size: int) -> list[list[str]]:
    return [texts[first : first + size] for first in range(0, len(texts), size)]
