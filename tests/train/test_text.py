"""A run with captions, from shards to a text tower that transformers opens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from stablerep.config import UserError
from stablerep.models import load_encoder
from stablerep.models.text_tower import load_text_tower
from stablerep.models.tokenizer import open_tokenizer
from stablerep.train import checkpoint
from stablerep.train.loop import train
from tests.data.pictures import write_shards
from tests.train.test_loop import Interrupted, config_for, final_state, interrupt_before, lines, tensors

TINY = {"context_length": 12, "text_layers": 1, "text_width": 16, "text_heads": 2, "embed_dim": 8}


def config_of(shards: Path, out: Path, **fields):  # type: ignore[no-untyped-def]
    from stablerep.train.objective_config import TextConfig

    return config_for(shards, out, text=TextConfig(**TINY), **fields)  # type: ignore[arg-type]


def test_a_run_with_captions_learns_resumes_and_leaves_a_text_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "shards", prompts=6, per_prompt=2)
    config = {"objective": "stablerep+", "views_per_prompt": 2, "batch_size": 12, "steps": 40, "base_lr": 0.1}
    config |= {"checkpoint_every": 20, "log_every": 10}
    exported = train(config_of(shards, tmp_path / "whole", **config))
    losses = [line["loss"] for line in lines(tmp_path / "whole")]
    assert losses[-1] < losses[0] - 0.5

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_before(25, patch)
        train(config_of(shards, tmp_path / "cut", **config))
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints") == [20]
    train(config_of(shards, tmp_path / "cut", **config))
    states = [final_state(tmp_path / name) for name in ("cut", "whole")]
    assert {"logit_scale", "image_projection.weight"} <= states[0]["model"].keys()
    assert all(torch.equal(a, b) for a, b in zip(*map(tensors, states), strict=True))

    tower, projection, scale = load_text_tower(exported)
    encoder, _ = load_encoder(exported)
    assert projection.shape == (8, encoder.num_features) and scale == states[1]["model"]["logit_scale"].exp()
    captions = ["prompt 3", "a photo of a bag"]
    tokenizer = CLIPTokenizer.from_pretrained(exported / "text_tower")
    tokens = tokenizer(captions, padding="max_length", max_length=12, return_tensors="pt").input_ids
    theirs = CLIPTextModelWithProjection.from_pretrained(exported / "text_tower")(input_ids=tokens).text_embeds
    torch.testing.assert_close(tower(tower.tokenizer(captions)), theirs)


def test_captions_are_cut_and_filled_up_to_one_length() -> None:
    tokens = open_tokenizer("default", 6)(["bag", "a photo of a dark slim plain ankle boot"])
    assert tokens.shape == (2, 6) and tokens.dtype == torch.int64
    assert tokens[0, 0] == tokens[1, 0] and tokens[0, -1] == tokens[1, -1]  # start, and end of text


def test_a_tokenizer_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, match in ((str(tmp_path / "no"), "no such folder"), (str(tmp_path / "empty"), "holds no tokenizer")):
        with pytest.raises(UserError, match=f"--tokenizer .*{match}") as error:
            open_tokenizer(name, 77)
        assert "\n" not in str(error.value)
