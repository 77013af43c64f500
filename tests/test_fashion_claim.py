"""The claim is asked of photos that no setting has seen, and its table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from examples.fashion import claim
from stablerep.config import UserError
from stablerep.data.labelled import LabelledSet

GARMENTS = ("t-shirt", "dress")


def few_photos(number: int) -> LabelledSet:
    images = np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    return LabelledSet(images, np.arange(number) % len(GARMENTS), GARMENTS)


@pytest.mark.parametrize("method", claim.SHARE)
def test_every_method_gets_a_search_of_the_same_size(method: str) -> None:
    settings = claim.settings_of(method)
    assert len(settings) == claim.TRIALS == len({json.dumps(setting) for setting in settings})
    assert settings == claim.settings_of(method)
    assert settings[0]["base_lr"] == 2e-3
    assert ("guidance_scale" in settings[0]) == (method != "simclr_real")


def test_photos_that_settings_are_chosen_by_train_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "LABELLED", 20)
    photos = few_photos(60)
    held = np.arange(60) < 10
    monkeypatch.setattr(claim, "HELD_OUT", 5)
    claim.write_photos(tmp_path, photos, held)
    claim.write_photos(tmp_path, photos, held)  # a rerun changes nothing
    assert len(list((tmp_path / "photos").rglob("*.png"))) == 50
    names = {path.name for path in claim.real_photos(tmp_path, 30, 1).iterdir()}
    assert len(names) == 30 and min(int(name[:5]) for name in names) >= 10
    assert names != {path.name for path in claim.real_photos(tmp_path, 30, 2).iterdir()}
    rows = [line.split(",") for line in (tmp_path / "validation.csv").read_text().splitlines()[1:]]
    assert {Path(path).parent.parent.name for path, _, split in rows if split == "test"} == {"held_out"}
    assert {Path(path).parent.parent.name for path, _, split in rows if split == "train"} == {"photos"}


def rows() -> list[dict[str, object]]:
    draw = np.random.default_rng(0)
    return [
        {"features": name, "images": 4000, **{each: draw.normal(80, 1, 5).round(2).tolist() for each in claim.MEASURES}}
        for name in claim.NAMES
    ]


def test_the_table_holds_means_and_intervals_over_seeds(tmp_path: Path) -> None:
    results = rows()
    written = claim.table(results)
    values = results[0]["linear_top1"]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert f"| raw pixels | 4,000 | {np.mean(values):.1f} ± {(high - low) / 2:.1f} |" in written
    gaps = np.subtract(results[3]["linear_top1"], results[2]["linear_top1"])
    half = stats.sem(gaps) * stats.t.ppf(0.975, 4)
    first = claim.differences(results).splitlines()[0]
    assert first.startswith("StableRep on synthetic less SimCLR on real photos: ")
    assert f"{gaps.mean():+.1f} ± {half:.1f} / " in first

    page = tmp_path / "README.md"
    page.write_text(f"before\n{claim.BEGIN}old\n{claim.END}after\n")
    claim.publish(page, written)
    claim.publish(page, written)
    assert page.read_text() == f"before\n{claim.BEGIN}{written}{claim.END}after\n"
    page.write_text("before\n")
    with pytest.raises(UserError, match="lacks the lines"):
        claim.publish(page, written)


@pytest.mark.slow
def test_the_whole_claim_at_a_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "NUM_IMAGES", 80)
    monkeypatch.setattr(claim, "TRIALS", 2)
    monkeypatch.setattr(claim, "SEEDS", 2)
    monkeypatch.setattr(claim, "LABELLED", 200)
    monkeypatch.setitem(claim.FIXED, "steps", 2)
    monkeypatch.setitem(claim.FIXED, "batch_size", 32)
    monkeypatch.setitem(claim.PAINTING, "num_prompts", (20,))
    results = claim.claim(tmp_path)
    assert [row["features"] for row in results] == list(claim.NAMES)
    assert all(len(row[name]) == 2 for row in results for name in claim.MEASURES)
    assert claim.claim(tmp_path) == results  # goes on: nothing is computed again
