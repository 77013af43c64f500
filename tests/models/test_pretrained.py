"""Names of timm and of the hub, with and without their weights at hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from stablerep.config import UserError
from stablerep.models import InputTransform, create_encoder, load_encoder
from tests.hub_cache import in_cache


@pytest.mark.parametrize("name", ["test_resnet", "test_resnet.r160_in1k", "hf-hub:timm/test_resnet.r160_in1k"])
def test_weights_of_the_cache_need_no_network(no_network: Path, name: str) -> None:
    model = in_cache(no_network, "test_resnet.r160_in1k")
    encoder, transform = load_encoder(name)
    assert transform == InputTransform(160, (0.5,) * 3, (0.5,) * 3, "bilinear", 0.95, "center")
    pixels = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[operator]
        torch.testing.assert_close(encoder(pixels), expected)


@pytest.mark.parametrize("name", ["test_resnet", "hf-hub:somebody/something"])
def test_no_weights_and_no_network_is_one_line_within_seconds(no_network: Path, name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=r": its weights are not in .*hub, and the hub cannot be reached .*hf download"):
        load_encoder(name)
    assert time.perf_counter() - start < 5
    assert not constants.HF_HUB_OFFLINE


def test_names_that_timm_does_not_know() -> None:
    with pytest.raises(UserError, match="tag 'a1_in2k' is unknown; did you mean a1_in1k"):
        load_encoder("resnet50.a1_in2k")
    with pytest.raises(UserError, match="coatnet_0_224: timm has no weights of it"):
        load_encoder("coatnet_0_224")
    with pytest.raises(UserError, match=r"--arch 'resnett50' is unknown; did you mean resnet50, \w+ or \w+\?$"):
        create_encoder("resnett50", 32)
