"""One training loop for all stages: batches drawn from (seed, step), so a run that was stopped goes on exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from stablerep import atomic

SAVE_EVERY = 250  # steps; about a minute on two cores


def train(
    model: nn.Module,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    *,
    num_photos: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    ema_decay: float,
    seed: int,
    checkpoint: Path,
    title: str,
    save_every: int = SAVE_EVERY,
) -> None:
    """Minimise loss_of(indices, generator) over the model's weights with AdamW, warm-up and half-cosine.

    Leaves the exponential moving average of the weights in the model. `checkpoint` holds the state every
    save_every steps and the finished one; a run that finds it goes on from there with the same numbers.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=steps, completed=first)
        smooth_loss = None
        for step in range(first, steps):
            host = torch.Generator().manual_seed(seed * 1_000_003 + step)
            indices = torch.randint(num_photos, (batch_size,), generator=host)
            noise = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, steps)
            loss = loss_of(indices, noise)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay = min(ema_decay, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay)

            if (step + 1) % 50 == 0:
                value = loss.item()
                smooth_loss = value if smooth_loss is None else 0.9 * smooth_loss + 0.1 * value
                progress.update(task, completed=step + 1, description=f"{title} loss {smooth_loss:.4f}")
                if not progress.console.is_terminal and (step + 1) % save_every == 0:
                    progress.console.print(f"{title} step {step + 1}/{steps} loss {smooth_loss:.4f}")
            if (step + 1) % save_every == 0 or step + 1 == steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                with atomic.new_file(checkpoint) as file:
                    torch.save(state | {"average": average, "step": step + 1}, file)
    model.load_state_dict(average)


def _schedule(step: int, steps: int, warmup: int = 200) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
