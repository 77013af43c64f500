"""A feature pass over decoded pictures, beside the bare encoder: to reach is at most 5 % more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.record import Bench
from stablerep.data.labelled import LabelledSet
from stablerep.evaluate.feature_cache import FeatureCache
from stablerep.evaluate.features import features_of
from stablerep.models import InputTransform, create_encoder

CLASSES = ("a", "b")
BATCH = 64


def test_feature_pass(bench: Bench, device: str, tmp_path: Path) -> None:
    photos, size, arch = (16, 32, "resnet10t") if bench.quick else (1024, 224, "resnet18")
    if device == "cpu" and not bench.quick:
        photos = 256
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (photos, size, size, 3), dtype=np.uint8)
    data = LabelledSet(images, np.arange(photos) % 2, CLASSES)
    encoder = create_encoder(arch, size).eval().to(device).to(memory_format=torch.channels_last)
    transform, place = InputTransform(size), torch.device(device)
    inputs = torch.cat([transform(each) for each in torch.from_numpy(images).split(BATCH)]).to(device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    bf16 = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    def bare() -> torch.Tensor:
        with torch.inference_mode(), bf16:
            return torch.cat([encoder(each) for each in inputs.split(BATCH)])

    def pass_() -> torch.Tensor:
        return features_of(encoder, transform, data, device=place, batch_size=BATCH, show=False).x

    number = iter(range(10**9))

    def kept() -> torch.Tensor:
        cache = FeatureCache(tmp_path / str(next(number)))
        found = cache.get(encoder, transform, data, device=place, batch_size=BATCH)
        assert found is not None and not found.from_cache
        return found.x

    torch.testing.assert_close(pass_(), bare().float(), rtol=2e-2, atol=2e-2)
    bench.compare(
        f"features of {photos} decoded pictures of {size}, {arch}",
        device,
        {"bare encoder": bare, "feature pass": pass_, "feature pass, kept on disk": kept},
    )
