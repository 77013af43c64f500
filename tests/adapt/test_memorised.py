"""Copies of training photos are found, and pictures of one's own are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stablerep.adapt.latents import thumbnail
from stablerep.adapt.memorised import compare, nearest, write_grid
from tests.data.pictures import random_pixels


def pictures(*seeds: int) -> torch.Tensor:  # uint8 [N, 3, 64, 64]
    return torch.stack([torch.from_numpy(random_pixels(seed, 64, 64).copy()).permute(2, 0, 1) for seed in seeds])


def test_copies_are_found_mirrored_darker_or_noisy() -> None:
    training, held_out = pictures(*range(40)), pictures(*range(100, 120))
    own = pictures(*range(200, 230))
    copies = pictures(3, 7, 11, 12).float()
    copies[1] = copies[1].flip(-1)
    copies[2] = 0.6 * copies[2] + 20
    copies[3] += 12 * torch.randn(copies[3].shape, generator=torch.Generator().manual_seed(0))
    painted = torch.cat([copies.clamp(0, 255).byte(), own])
    found, distances, of_photo = compare(*map(thumbnail, (painted, training, held_out)))
    assert found.count == 4 and found.pictures == 34 and of_photo[:4].tolist() == [3, 7, 11, 12]
    assert distances[:4].max() < found.threshold < distances[4:].min()
    assert "4 of 34 painted pictures are near copies" in str(found)
    assert "none of 30" in str(compare(*map(thumbnail, (own, training, held_out)))[0])


def test_plain_pictures_of_one_colour_are_no_copies() -> None:
    """Cloth without a pattern: what is left is the weave, which is another each time."""
    draw = np.random.default_rng(0)
    cloth = [np.full((64, 64, 3), (180, 90, 100)) + 6 * draw.standard_normal((64, 64, 3)) for _ in range(60)]
    thumbnails = thumbnail(torch.tensor(np.stack(cloth).round()).byte().permute(0, 3, 1, 2))
    assert compare(thumbnails[:20], thumbnails[20:40], thumbnails[40:])[0].count == 0


def test_distances_are_those_of_two_loops() -> None:
    these, those = (torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(n)) for n in (5, 7))

    def unit(picture: torch.Tensor) -> np.ndarray:
        centred = picture.double().numpy() - [[[channel.mean().item()]] for channel in picture.double()]
        return centred.flatten() / np.linalg.norm(centred)

    found, where = nearest(these, those)
    for number, this in enumerate(these):
        each = [min(np.linalg.norm(unit(one) - unit(that)) for one in (this, this.flip(-1))) for that in those]
        assert where[number] == int(np.argmin(each))
        assert abs(found[number].item() - min(each)) < 1e-6


def test_a_grid_fills_what_lacks_with_black(tmp_path: Path) -> None:
    one = np.full((4, 6, 3), 200, np.uint8)
    write_grid(tmp_path / "a" / "grid.png", [[one, one], [one]])
    with Image.open(tmp_path / "a/grid.png") as grid:
        pixels = np.asarray(grid)
    assert pixels.shape == (8, 12, 3) and pixels[4:, 6:].max() == 0 and pixels[:4].min() == 200
    write_grid(tmp_path / "none.png", [])
    assert not (tmp_path / "none.png").exists()
