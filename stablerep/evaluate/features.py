"""Features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stablerep import runlog


def features_of(
    encoder: nn.Module,
    transform: Callable[[Tensor], Tensor],  # uint8 [B, H, W, 3] -> float [B, 3, S, S]
    images: Tensor,  # [N, H, W, 3] uint8 in host memory
    *,
    device: torch.device,
    batch_size: int = 256,
    title: str = "features",
    show: bool = True,
) -> Tensor:  # [N, D] float32 on the device
    """What the frozen encoder says of each picture. bfloat16 on CUDA, float32 elsewhere.

    The encoder is left on the device, in eval mode.
    """
    encoder = encoder.to(device).to(memory_format=torch.channels_last).eval()
    features: Tensor | None = None
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    with runlog.progress(title, len(images), "images", show=show) as bar:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(device)
            with torch.inference_mode(), bf16:
                found = encoder(transform(batch).contiguous(memory_format=torch.channels_last))
            if features is None:  # made outside inference mode: the probes take gradients through it
                features = torch.empty(len(images), found.shape[1], device=device)
            features[start : start + len(found)] = found
            bar.update(start + len(found))
    assert features is not None, "no images"
    return features


def standardiser(x: Tensor) -> tuple[Tensor, Tensor]:  # [N, D] -> [D] shift, [D] scale
    """(x - shift) * scale has mean 0 and deviation 1 in each column; a constant column becomes 0.

    The same as a BatchNorm without weights that has seen all of x.
    """
    shift, deviation = x.mean(0), x.std(0, unbiased=False)
    constant = deviation <= 1e-6 * x.abs().amax(0)  # rounding leaves a little deviation in a constant column
    return shift, torch.where(constant, 0.0, 1.0 / deviation)
