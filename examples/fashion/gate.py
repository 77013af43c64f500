"""Is the generator good? A CNN that knows real photos judges its pictures.

    python -m examples.fashion.gate --pipeline runs/fashion/pipeline --out runs/fashion/gate

The share of pictures in which the CNN finds the prompt's class, and the Fréchet distance to the real test photos in
the CNN's features, for each guidance scale. Captions are drawn as often as the training photos have them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import stablerep
from examples.fashion.captions import Caption, measure_steps
from examples.fashion.vae import encode
from stablerep.data.labelled import LabelledSet, fashion_mnist
from stablerep.evaluate.quality.frechet import frechet_distance
from stablerep.shards import read_pictures

GUIDANCE_SCALES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
GATE_SCALE, GATE_CLASS, GATE_CNN = 2.0, 93.0, 91.0  # percent


class Judge(nn.Module):
    """Four convolutions; its 128 features before the last layer are the space of the distance."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()

        def block(channels_in: int, channels: int, pool: bool) -> nn.Sequential:
            layers = [nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)

        self.body = nn.Sequential(block(1, 32, True), block(32, 64, True), block(64, 128, False), block(128, 128, True))
        self.classify = nn.Linear(128, num_classes)

    def features(self, grey: Tensor) -> Tensor:  # [B, 1, 32, 32] 0..1 -> [B, 128]
        return self.body(grey).mean((2, 3))

    def forward(self, grey: Tensor) -> Tensor:
        return self.classify(self.features(grey))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=stablerep.default_generator())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-images", type=int, default=5000)
    parser.add_argument("--num-inference-steps", type=int, default=12)
    parser.add_argument("--scheduler", default="dpmsolver++")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    real_train, real_test = fashion_mnist("train"), fashion_mnist("test")
    judge = trained_judge(real_train, args.out / "judge.pt")
    test_features, test_classes = judge_features(judge, grey(real_test.images))
    accuracy = 100 * (test_classes == real_test.labels).mean()
    print(f"judge: {accuracy:.1f} % of real test photos right (gate {GATE_CNN} %)")

    result = {
        "judge_top1": accuracy,
        "distance_real_train": distance(test_features, judge_features(judge, grey(real_train.images))[0]),
        "distance_vae": distance(test_features, judge_features(judge, grey(through_vae(args.pipeline, real_test)))[0]),
        "num_images": args.num_images,
        "num_inference_steps": args.num_inference_steps,
        "scheduler": args.scheduler,
        "guidance": [],
    }
    garments, prompts = draw_captions(real_train, args.num_images)
    (args.out / "prompts.txt").write_text("\n".join(prompts))
    for scale in GUIDANCE_SCALES:
        out = args.out / f"guidance_{scale:g}"
        summary = stablerep.generate(
            prompts=str(args.out / "prompts.txt"),
            out=str(out),
            model=str(args.pipeline),
            num_images_per_prompt=1,
            guidance_scale=scale,
            num_inference_steps=args.num_inference_steps,
            scheduler=args.scheduler,
            image_format="png",
        )
        features, classes = judge_features(judge, grey(np.stack(list(decoded(out)))))
        row = {
            "guidance_scale": scale,
            "class_found": 100 * (classes == garments).mean(),
            "distance": distance(test_features, features),
            "images_per_second": summary.images_made / summary.seconds,
        }
        result["guidance"].append(row)
        (args.out / "gate.json").write_text(json.dumps(result, indent=1))

    table = Table("guidance", "class found %", "Fréchet distance", "images/s")
    for row in result["guidance"]:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    Console().print(table)
    print(f"real training photos: {result['distance_real_train']:.3f}; VAE alone: {result['distance_vae']:.3f}")
    found = next(row["class_found"] for row in result["guidance"] if row["guidance_scale"] == GATE_SCALE)
    if accuracy < GATE_CNN or found < GATE_CLASS:
        raise SystemExit(f"gate failed: {found:.1f} % at guidance {GATE_SCALE}, {GATE_CLASS} % asked")
    print(f"gate passed: {found:.1f} % at guidance {GATE_SCALE} ({GATE_CLASS} % asked)")


def trained_judge(photos: LabelledSet, path: Path, epochs: int = 6, batch_size: int = 256) -> Judge:
    """Train the judge on real photos, or open it if `path` has it."""
    torch.manual_seed(0)
    judge = Judge(len(photos.class_names))
    if path.exists():
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    images, labels = grey(photos.images), torch.from_numpy(photos.labels)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.02)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for epoch in range(epochs):
        for indices in torch.randperm(len(images))[: steps // epochs * batch_size].view(-1, batch_size):
            loss = F.cross_entropy(judge(images[indices]), labels[indices], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"judge: epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}", flush=True)
    torch.save(judge.state_dict(), path)
    return judge.eval()


def draw_captions(photos: LabelledSet, number: int) -> tuple[np.ndarray, list[str]]:
    """Garment numbers and captions of `number` training photos drawn at random."""
    steps = measure_steps(photos)
    drawn = np.random.default_rng(0).choice(len(photos), number, replace=False)
    labels = photos.labels[drawn]
    captions = [Caption(photos.class_names[label], *steps[i]) for i, label in zip(drawn, labels, strict=True)]
    return labels, [str(caption) for caption in captions]


@torch.inference_mode()
def judge_features(judge: Judge, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, 128] float64 and classes [N] that the judge sees in grey pictures [N, 1, 32, 32]."""
    features = torch.cat([judge.features(block) for block in images.split(1000)])
    return features.double().numpy(), judge.classify(features).argmax(1).numpy()


def through_vae(pipeline: Path, photos: LabelledSet) -> np.ndarray:
    """Photos after the autoencoder alone: the best that a UNet could do."""
    vae = AutoencoderKL.from_pretrained(pipeline / "vae", dtype=torch.float32)
    latents, _ = encode(vae, torch.from_numpy(photos.images).permute(0, 3, 1, 2))
    with torch.inference_mode():
        images = torch.cat([vae.decode(block).sample for block in latents.split(500)])
    return images.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:  # [N, 128], [M, 128]
    return frechet_distance(torch.from_numpy(a), torch.from_numpy(b))


def decoded(out: Path) -> Iterator[np.ndarray]:
    from io import BytesIO

    from PIL import Image

    for _, data in read_pictures(out):
        yield np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def grey(images: np.ndarray) -> Tensor:
    """[N, H, W, 3] uint8 to [N, 1, H, W] float32 0..1."""
    return torch.from_numpy(images.mean(-1, dtype=np.float32)[:, None] / 255)


if __name__ == "__main__":
    main()
