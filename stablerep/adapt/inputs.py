"""The model made ready to learn, and what it learns from: photos, captions, pictures of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stablerep import atomic, distributed
from stablerep.adapt.config import AdaptConfig
from stablerep.adapt.latents import Captions, Latents, Model, OpenModel, encode_pictures
from stablerep.adapt.photos import AdaptPhotos, squares
from stablerep.adapt.trained import text_encoders
from stablerep.adapt.vae import train_vae
from stablerep.config import UserError
from stablerep.runlog import progress

POOR_PSNR = 20.0  # decibels; VAEs of Stable Diffusion draw photos again with 25 to 35
PRIOR = "prior"

log = logging.getLogger("stablerep.adapt")


class Paint(Protocol):
    """A picture of each prompt, uint8 [N, H, W, 3] on the host."""

    def __call__(
        self, model: Any, prompts: Sequence[str], /, *, seed: int, guidance_scale: float, num_inference_steps: int
    ) -> Tensor: ...


@dataclass(frozen=True)
class Data:
    """What is trained on and what is looked at, as the UNet sees it."""

    training: Latents
    held_out: Latents
    prior: Latents | None
    captions: Captions
    fingerprint: str


@contextmanager
def one_device(asked: str) -> Iterator[torch.device]:
    """
    Raises:
        UserError: there is none such, or torchrun started several ranks.
    """
    with distributed.start(asked) as device:
        if distributed.world_size() > 1:
            raise UserError("an adaptation runs on one device; start it without torchrun")
        yield device


def is_bf16(config: AdaptConfig, device: torch.device) -> bool:
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")


def open_for_training(config: AdaptConfig, open_model: OpenModel, device: torch.device) -> Model:
    """
    Raises:
        UserError: it does not open, cannot be adapted, or cannot paint pictures of --image-size.
    """
    model: Model = open_model(config.model, device, torch.float32, config.model_config)
    if model.embeds_guidance:
        raise UserError(f"--model {config.model} was distilled (LCM); adapt the model that it was distilled from")
    if config.image_size is not None:
        scale = pixels_a_latent(model)
        least = scale * 2 ** (len(model.unet.config.block_out_channels) - 1)  # the UNet halves its latents so often
        if config.image_size % least:
            near = max(least, round(config.image_size / least) * least)
            raise UserError(
                f"--image-size {config.image_size} is no multiple of this model's {least} pixels; try {near}"
            )
        model.unet.register_to_config(sample_size=config.image_size // scale)
    return model


def pixels_a_latent(model: Model) -> int:
    return 2 ** (len(model.vae.config.block_out_channels) - 1)


def picture_size(model: Model) -> tuple[int, int]:
    """Height and width of what it paints."""
    _, height, width = model.latent_shape
    return height * pixels_a_latent(model), width * pixels_a_latent(model)


def prepare(
    config: AdaptConfig,
    photos: AdaptPhotos,
    model: Model,
    paint: Paint,
    device: torch.device,
    stopped: Callable[[], bool],
    claim: Callable[[], None],
    writes: bool = True,
) -> Data | None:  # None: stopped on the way
    """Encode what is learned from. Photos are seen to be good before `claim` makes the folder, or anything is painted.

    Raises:
        UserError: fewer than four photos can be read, or some are too small.
    """
    size = picture_size(model)
    pictures: dict[int, Tensor] = {}
    with progress(f"adapt {config.out.name}: reading", len(photos), "photos") as bar:
        for count, (number, each) in enumerate(squares(photos, size, config), 1):
            pictures[number] = each
            bar.update(count)
    readable = photos.take(np.array(sorted(pictures), np.int64))
    sides = readable.split(config.held_out_share, config.seed)
    of_digest = {photos.digests[number]: each for number, each in pictures.items()}
    claim()
    if config.vae_steps:
        views = torch.stack([of_digest[digest] for digest in sides[0].digests])
        if not train_vae(model.vae, views, config, device, stopped, config.out if writes else None):
            return None
    training, held_out = (
        encode_pictures(
            model.vae,
            ((caption, of_digest[digest]) for caption, digest in zip(side.captions, side.digests, strict=True)),
        )
        for side in sides
    )
    say_what_is_there(config, model, (training, held_out))
    prior = _prior(config, model, paint, writes) if config.prior_prompt else None
    texts = [text for latents in (training, held_out, prior) if latents for text in latents.captions]
    captions = Captions(model, texts, learns=config.text_encoder)
    return Data(training, held_out, prior, captions, readable.fingerprint)


def say_what_is_there(config: AdaptConfig, model: Model, sides: Sequence[Latents]) -> None:
    training, held_out = sides
    different = list(dict.fromkeys([*training.captions, *held_out.captions]))
    height, width = picture_size(model)
    log.info(
        "%d photos to learn from, %d held out, %d different captions, %d x %d pixels; the VAE draws them with %.1f dB",
        len(training), len(held_out), len(different), width, height, training.psnr,
    )  # fmt: skip
    if training.psnr < POOR_PSNR:
        log.warning(
            "the VAE of --model %s cannot draw such photos (%.1f dB; from %.0f on they look right), so no picture will "
            "look like them; teach it first: --full --vae-steps 2000, or take another --model",
            config.model, training.psnr, POOR_PSNR,
        )  # fmt: skip
    if cut := [caption for caption in different if model.is_cut(caption)]:
        log.warning("%d captions are longer than the model reads, first %r; their ends are cut", len(cut), cut[0])


def _prior(config: AdaptConfig, model: Model, paint: Paint, writes: bool) -> Latents:
    """Pictures that the model paints before it learns; kept in OUT/prior, so that a run that goes on has the same."""
    assert config.prior_prompt is not None
    folder = config.out / PRIOR
    if not folder.exists():
        log.info("painting %d pictures of %r, to be kept in mind", config.prior_images, config.prior_prompt)
        painted = paint(
            model, [config.prior_prompt] * config.prior_images, seed=config.seed,
            guidance_scale=config.guidance_scale, num_inference_steps=config.num_inference_steps,
        )  # fmt: skip
        if not writes:
            return _encoded_prior(config, model, painted)
        with atomic.new_folder(folder) as partial:
            for number, pixels in enumerate(painted.numpy()):
                Image.fromarray(pixels).save(partial / f"{number:04}.png")
    files = sorted(folder.glob("*.png"))
    return _encoded_prior(config, model, torch.stack([_read(file) for file in files]))


def _encoded_prior(config: AdaptConfig, model: Model, painted: Tensor) -> Latents:
    assert config.prior_prompt is not None
    return encode_pictures(model.vae, ((config.prior_prompt, each.permute(2, 0, 1)[None]) for each in painted))


def _read(file: Path) -> Tensor:
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB")))


def cast_frozen(config: AdaptConfig, model: Model, device: torch.device) -> None:
    """What a LoRA stands beside needs half the memory in bfloat16; what learns itself stays in single precision."""
    if not config.full and is_bf16(config, device):
        for module in (model.unet, *text_encoders(model).values()):
            module.to(torch.bfloat16)
