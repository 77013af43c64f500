"""Each objective against the sums of its paper in float64, and on 2 and 4 ranks against itself on one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stablerep import config as configs
from stablerep import distributed
from stablerep.data.loader import Batch
from stablerep.data.masking import masked_patches
from stablerep.models import create_encoder
from stablerep.train import optimiser
from stablerep.train.config import TrainConfig
from stablerep.train.loop import open_data
from stablerep.train.objectives import contrastive, create_objective
from stablerep.train.objectives.contrastive import koleo
from tests.data.pictures import write_folder
from tests.waits import Waits

ROWS, SIZE = 16, 32
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 0, 5, 6, 6])  # of two ranks' and four ranks' batches too
OBJECTIVES = ("stablerep", "simclr", "supcon", "clip", "siglip", "stablerep+")
SMALL, CROPS, PATCHES = 16, 2, 4  # small crops of 16 pixels; of 32 pixels there are 2 x 2 patches
SYNCLR: dict[str, dict[str, Any]] = {
    "small crops": {"local_crops": CROPS, "local_crop_size": SMALL},
    "teacher": {"ema_teacher": 0.9},
    "synclr": {"ema_teacher": 0.9, "local_crops": CROPS, "local_crop_size": SMALL}
    | {"ibot_weight": 0.7, "ibot_prototypes": 12, "koleo_weight": 0.4},
    "koleo": {"koleo_weight": 0.3},
}
NAMES = (*OBJECTIVES, *SYNCLR)


def config_of(objective: str, **fields: Any) -> TrainConfig:
    tiny = {"data": "none", "out": Path("none"), "arch": "test_vit", "image_size": SIZE, "batch_size": ROWS}
    tiny |= {"views_per_prompt": 2, "head_hidden": 16, "head_out": 8, "base_lr": 0.01, "temperature": 0.2}
    tiny |= {"context_length": 8, "text_layers": 1, "text_width": 16, "text_heads": 2, "embed_dim": 8}
    fields = {"objective": objective} | fields if objective in OBJECTIVES else SYNCLR[objective] | fields
    return configs.from_fields(TrainConfig, tiny | fields)


def build(config: TrainConfig) -> nn.Module:
    torch.manual_seed(0)
    encoder = create_encoder(config.arch, SIZE, SMALL if config.synclr.local_crops else None)
    model = create_objective(encoder, config, bf16=False).double().train()
    for teacher in model.children() if config.synclr.ema_teacher else ():
        if isinstance(teacher, nn.ModuleDict):  # another than the student, or half of it would not be seen
            with torch.no_grad():
                for weight in teacher.parameters():
                    weight += 0.1 * torch.randn_like(weight)
    return model


def batch_of(step: int, config: TrainConfig, rows: slice = slice(0, ROWS)) -> Batch:
    draws = torch.Generator().manual_seed(step)
    images = torch.randn(ROWS, 3, SIZE, SIZE, generator=draws, dtype=torch.float64)
    tokens = torch.randint(2, 400, (7, 8), generator=draws)
    tokens[:, 0], tokens[:, -1] = 0, 1
    texts, text_of = LABELS[rows].unique(return_inverse=True)
    small = torch.randn(ROWS, CROPS, 3, SMALL, SMALL, generator=draws, dtype=torch.float64)
    masked = masked_patches(0, step, range(rows.start, rows.stop), (2, 2))
    return Batch(
        images[rows], LABELS[rows], tokens[texts], text_of,
        small[rows] if config.synclr.local_crops else None,
        torch.from_numpy(masked) if config.synclr.ibot_weight else None,
    )  # fmt: skip


def five_steps(config: TrainConfig) -> tuple[list[float], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Losses, the first step's gradients as DDP leaves them, and the state after five."""
    model = build(config)
    adamw = optimiser.create_optimiser(model, config)
    forward = DistributedDataParallel(model) if distributed.world_size() > 1 else model
    each = ROWS // distributed.world_size()
    rows = slice(distributed.rank() * each, (distributed.rank() + 1) * each)
    losses: list[float] = []
    gradients: dict[str, np.ndarray] = {}
    for step in range(5):
        loss = forward(batch_of(step, config, rows))
        loss.backward()
        losses.append(loss.item())
        gradients = gradients or gradients_of(model)
        optimiser.set_learning_rate(adamw, 1e-3)
        optimiser.apply_gradients(adamw)
        if config.synclr.ema_teacher:
            model.update_teacher((step + 1) / 5)  # type: ignore[operator]
    return losses, gradients, {name: value.numpy() for name, value in model.state_dict().items()}


def gradients_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: weight.grad.numpy().copy() for n, weight in model.named_parameters() if weight.grad is not None}


def five_steps_of_each(names: tuple[str, ...]) -> list[Any]:
    return [five_steps(config_of(name)) for name in names]


def test_two_and_four_ranks_train_what_one_does(run_ranks: Callable[..., list[Any]], one_thread: None) -> None:
    expected = five_steps_of_each(NAMES)
    for ranks in (2, 4):
        for found in run_ranks(ranks, five_steps_of_each, NAMES):
            for name, (losses, gradients, state), ours in zip(NAMES, expected, found, strict=True):
                np.testing.assert_allclose(ours[0], losses, rtol=1e-9, err_msg=name)
                for mine, theirs in ((ours[1], gradients), (ours[2], state)):
                    assert mine.keys() == theirs.keys()
                    for key, value in theirs.items():
                        atol = (
                            1e-7 * np.abs(value).max() + 1e-8
                        )  # of a bias without effect, AdamW makes steps of rounding
                        np.testing.assert_allclose(mine[key], value, rtol=1e-5, atol=atol, err_msg=f"{name} {key}")


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    return (rows / rows.norm(dim=1, keepdim=True)) @ (others / others.norm(dim=1, keepdim=True)).T


def multi_positive(rows: Tensor, temperature: float, labels: Tensor = LABELS) -> Tensor:
    """Row by row: the cross-entropy between the softmax over all others and equal shares for the positives."""
    score, total = cosines(rows, rows) / temperature, rows.new_zeros(())
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        denominator = torch.stack([score[i, j].exp() for j in others]).sum()
        for j in positives:
            total = total - (score[i, j].exp() / denominator).log() / len(positives)
    return total / len(labels)


def image_text(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    total = images.new_zeros(())
    for score in (scale * cosines(images, texts), scale * cosines(texts, images)):
        for i in range(ROWS):
            right = [j for j in range(ROWS) if LABELS[j] == LABELS[i]]
            total = total - sum((score[i].softmax(0)[j].log() for j in right), start=images.new_zeros(())) / len(right)
    return total / (2 * ROWS)


def sigmoid_pairs(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    score, total = scale * cosines(images, texts) + bias, images.new_zeros(())
    for i in range(ROWS):
        for j in range(ROWS):
            sign = 1 if LABELS[i] == LABELS[j] else -1
            total = total + (1 + (-sign * score[i, j]).exp()).log()
    return total / ROWS


def synclr(model: Any, batch: Batch, config: TrainConfig) -> Tensor:
    """SupCon against the teacher's rows of other pictures, of large and of small crops, and iBOT, one row at a time."""
    asked = config.synclr
    holes = torch.zeros(ROWS, PATCHES, dtype=torch.bool)
    if batch.masked is not None:
        holes.view(-1)[batch.masked] = True
    tokens = encoded(model.encoder, batch.images, holes, getattr(model, "mask_token", None))
    features, crops = model.encoder.forward_head(tokens), []
    if batch.small_images is not None:
        crops = [(i, model.encoder(batch.small_images[i])) for i in range(ROWS)]
    rows = model.head(torch.cat([features, *(each for _, each in crops)]))  # one BatchNorm over all
    picture = [*range(ROWS), *(i for i, _ in crops for _ in range(CROPS))]
    if not asked.ema_teacher:
        return multi_positive(rows, config.temperature, LABELS[picture]) + asked.koleo_weight * by_distances(features)
    with torch.no_grad():
        seen = encoded(model.teacher["encoder"], batch.images, torch.zeros_like(holes), None)
        keys = model.teacher["head"](model.teacher["encoder"].forward_head(seen))
    score, per_row = cosines(rows, keys) / config.temperature, []
    for row, i in enumerate(picture):
        others = [j for j in range(ROWS) if j != i]
        positives = [j for j in others if LABELS[j] == LABELS[i]]
        shares = score[row, others].softmax(0)
        terms = [-shares[others.index(j)].log() for j in positives]
        per_row.append(torch.stack(terms).mean() if terms else score.new_zeros(()))
    loss = torch.stack(per_row[:ROWS]).mean() + asked.koleo_weight * by_distances(features)
    if crops:
        loss = loss + torch.stack(per_row[ROWS:]).mean()
    if asked.ibot_weight:
        prefix = tokens.shape[1] - PATCHES
        at = tuple(holes.nonzero().T)
        with torch.no_grad():
            target = (model.teacher["patch_head"](seen[:, prefix:][at]) / 0.07).exp()
            for _ in range(3):
                target = target / target.sum(0, keepdim=True)
                target = target / target.sum(1, keepdim=True)
        guesses = (model.patch_head(tokens[:, prefix:][at]) / 0.1).softmax(1)
        for i, shares, guess in zip(at[0].tolist(), target, guesses, strict=True):
            loss = loss - asked.ibot_weight * (shares * guess.log()).sum() / holes[i].sum() / ROWS
    return loss


def by_distances(features: Tensor, labels: Tensor = LABELS) -> Tensor:
    """KoLeo, one pair at a time: the smallest distance to a row of another label, whose row stands still."""
    unit, total = features / features.norm(dim=1, keepdim=True), features.new_zeros(())
    for row, label in zip(unit, labels, strict=True):
        others = unit.detach()[labels != label]
        distances = [(row - other + 1e-8).square().sum().sqrt() for other in others]
        total = total - (torch.stack(distances).min() + 1e-8).log() if distances else total
    return total / len(labels)


def encoded(vit: Any, images: Tensor, holes: Tensor, mask_token: Tensor | None) -> Tensor:  # [B, prefix + P, D]
    patches = vit.patch_embed(images)
    if mask_token is not None:
        patches = torch.where(holes.view(*patches.shape[:-1], 1), mask_token, patches)
    return vit.norm(vit.blocks(vit.norm_pre(vit._pos_embed(patches))))


def by_the_paper(name: str, model: Any, batch: Batch, config: TrainConfig) -> Tensor:
    if name in SYNCLR:
        return synclr(model, batch, config)
    features = model.encoder(batch.images)
    texts = model.text_tower(batch.texts)[batch.text_of] if "text_tower" in dict(model.named_children()) else None
    if name == "clip":
        return image_text(model.head(features), texts, model.logit_scale.exp())
    if name == "siglip":
        return sigmoid_pairs(model.head(features), texts, model.logit_scale.exp(), model.logit_bias)
    loss = multi_positive(model.head(features), config.temperature)
    if name == "stablerep+":
        loss = loss + image_text(model.image_projection(features), texts, model.logit_scale.exp())
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_those_of_the_paper(name: str) -> None:
    config = config_of(name)
    model, batch = build(config), batch_of(0, config)
    expected = by_the_paper(name, model, batch, config)
    expected.backward()
    theirs = gradients_of(model)
    model.zero_grad(set_to_none=True)
    loss = model(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    ours = gradients_of(model)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert ours.keys() == theirs.keys() == trained  # DDP needs all of them
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-6, atol=1e-9 * np.abs(value).max() + 1e-14, err_msg=key)


@pytest.mark.parametrize("views", [1, 3])
def test_supcon_of_any_number_of_views(views: int, tmp_path: Path) -> None:
    """A batch as it is dealt, where rows of one view may be without positive: they count as 0."""
    for name, pictures in (("bag", 5), ("coat", 4), ("shoe", 1)):
        write_folder(tmp_path / name, pictures)
    config = config_of("supcon", data=str(tmp_path), views_per_prompt=views, batch_size=12 if views == 3 else 10)
    files = open_data(config, torch.device("cpu")).files
    assert files is not None
    picks = files.picks(0)
    labels = torch.from_numpy(picks.label)
    assert (np.unique(picks.image, return_counts=True)[1] == views).all()
    model: Any = build(config)
    images = torch.randn(len(labels), 3, SIZE, SIZE, dtype=torch.float64)
    expected = multi_positive(model.head(model.encoder(images)), config.temperature, labels)
    expected.backward()
    theirs = gradients_of(model)
    model.zero_grad(set_to_none=True)
    loss = model(Batch(images, labels))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for key, value in gradients_of(model).items():
        np.testing.assert_allclose(value, theirs[key], rtol=1e-6, atol=1e-9 * np.abs(value).max() + 1e-14, err_msg=key)


def test_loss_of_the_features_is_the_loss() -> None:
    """What gradient caching rests on: features of parts of a batch, one after the other, then the loss of all."""
    for name in (*OBJECTIVES, "koleo"):
        model, batch = build(config_of(name)), batch_of(0, config_of(name))
        assert model.why_not_split is None
        halves = [replace(batch, images=half) for half in batch.images.chunk(2)]
        features = torch.cat([model.features(half) for half in halves])
        assert model.loss(features, batch).item() == pytest.approx(model(batch).item(), rel=1e-10)


def test_koleo_by_hand() -> None:
    """Unit rows at 0, 60 and 180 degrees, the first two of one label: 2, root 3 and root 3 apart from their nearest."""
    rows = torch.tensor([[3.0, 0.0], [0.5, 0.75**0.5], [-2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = koleo(rows, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx(-math.log(6) / 3, rel=1e-6)
    loss.backward()
    # The third moves away from the second, 120 degrees off, along the circle: cot(60 degrees) / 2 over length 2, mean.
    np.testing.assert_allclose(rows.grad[2], [0.0, 3**-0.5 / 2 / 2 / 3], atol=1e-7)


def test_koleo_in_blocks_is_that_of_pairs_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "NEIGHBOUR_ROWS", 10)
    rows = torch.randn(63, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(63) * 7919 % 5
    with Waits() as waits:
        loss = koleo(rows, labels)
        (gradient,) = torch.autograd.grad(loss, rows)
    assert not +waits.counts
    expected = by_distances(rows, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, rows)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_koleo_of_one_place_or_of_one_label_is_finite(dtype: torch.dtype) -> None:
    rows = torch.ones(6, 8, dtype=dtype, requires_grad=True)
    loss = koleo(rows, torch.arange(6))
    loss.backward()
    assert loss.isfinite() and rows.grad is not None and rows.grad.isfinite().all()
    alone = torch.randn(6, 8, dtype=dtype, requires_grad=True)
    loss = koleo(alone, torch.zeros(6, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and alone.grad is not None and (alone.grad == 0).all()


def test_the_logit_scale_stays_at_most_100_and_comes_down_again() -> None:
    config = config_of("clip")
    model: Any = build(config)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    model(batch_of(0, config)).backward()
    assert model.logit_scale.item() == pytest.approx(math.log(100)) and model.logit_scale.grad != 0
