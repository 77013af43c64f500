"""Train the embedded default: a tiny Stable Diffusion pipeline that draws garments.

    python -m examples.fashion.train --out runs/fashion

Rerun the same line to go on after a stop. The finished pipeline is in OUT/pipeline.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from examples.fashion.captions import all_captions
from examples.fashion.sharpen import sharpen
from examples.fashion.text import train_tokenizer
from examples.fashion.unet import TextToLatent, new_noise_schedule, train_unet
from examples.fashion.vae import encode, train_vae
from stablerep.data.labelled import fashion_mnist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae-steps", type=int, default=5000, help="of 32 photos")
    parser.add_argument("--decoder-steps", type=int, default=1500, help="of 32 photos, against the critic")
    parser.add_argument("--unet-steps", type=int, default=9000, help="of 128 photos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)

    photos = fashion_mnist("train")
    pixels = torch.from_numpy(photos.images).permute(0, 3, 1, 2)
    vae = train_vae(pixels, steps=args.vae_steps, seed=args.seed, device=device, checkpoint=args.out / "vae.pt")
    sharpen(vae, pixels, steps=args.decoder_steps, seed=args.seed + 11, checkpoint=args.out / "decoder.pt")
    mean, deviation = encode(vae, pixels)
    latents = mean * vae.config.scaling_factor, deviation * vae.config.scaling_factor
    tokenizer = train_tokenizer(str(caption) for caption in all_captions(photos.class_names))
    model = train_unet(
        tokenizer,
        photos,
        latents,
        steps=args.unet_steps,
        seed=args.seed,
        device=device,
        checkpoint=args.out / "unet.pt",
    )
    save_pipeline(vae, tokenizer, model, args.out / "pipeline")
    print(f"saved {args.out / 'pipeline'}")


def save_pipeline(vae: AutoencoderKL, tokenizer: CLIPTokenizer, model: TextToLatent, folder: Path) -> None:
    """Save in half precision as the folder that DiffusionPipeline.from_pretrained opens."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(new_noise_schedule().config, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    # transformers opens a model in the precision its config names, diffusers in single: without this a plain
    # from_pretrained mixes the two and fails at the first step.
    config = folder / "text_encoder/config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    # transformers before 5 reads these two instead of tokenizer.json.
    tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))


if __name__ == "__main__":
    main()
