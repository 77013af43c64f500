"""A whole proof of concept in miniature: what it leaves behind, what a second call does, what a kill costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from stablerep.config import UserError, to_dict
from stablerep.poc.config import PocConfig
from stablerep.poc.inputs import with_pretrained
from stablerep.poc.run import estimate, run_poc
from stablerep.poc.summary import read_right, table
from stablerep.shards import read_pictures
from tests.hub_cache import in_cache

Tiny = Callable[..., PocConfig]
MEASURES = {"linear_top1", "few_shot_10", "knn_top1"}


def stamps(folder: Path, *patterns: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def test_what_it_leaves_behind_and_a_rerun_changes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    arms_asked = (*tiny().arms, "supervised")
    given = {"seeds": 2, "real_share": (0.25, 0.5), "batch_size": 16, "watts": 100.0, "usd_per_hour": 2.0}
    config = tiny(**given, arms=arms_asked)
    out = tmp_path / "out"
    poc = run_poc(config)
    assert poc == json.loads((out / "poc.json").read_text())
    assert poc["data"] == {
        "classes": ["bag", "sneaker", "trouser"], "train": 6, "validation": 3, "test": 3, "unlabelled": 3,
        "split": "split.csv",
    }  # fmt: skip
    arms = {arm["name"]: arm for arm in poc["arms"]}
    assert list(arms) == [
        "pixels", "supervised", "real", "real-longer", "synthetic", "hybrid-0.25", "hybrid-0.5",
    ]  # fmt: skip
    sizes = {name: (arm["synthetic_images"], arm["real_images"]) for name, arm in arms.items()}
    assert sizes["synthetic"] == (24, 0) and sizes["real"] == (0, 9) and sizes["supervised"] == (0, 6)
    assert sizes["hybrid-0.25"] == (16, 8) and sizes["hybrid-0.5"] == (12, 9)  # whole prompts, all photos
    for arm in arms.values():
        assert set(arm["mean"]) == set(arm["ci95"]) == MEASURES and arm["mean"]["few_shot_10"] is None
        assert [seed["seed"] for seed in arm["seeds"]] == [0, 1]
        for seed in arm["seeds"]:
            measured = json.loads((out / seed["measured"] / "results.json").read_text())
            assert {name: measured[name] for name in MEASURES} == {name: seed[name] for name in MEASURES}
            if seed["train"]:
                trained = yaml.safe_load((out / seed["train"] / "config.yaml").read_text())
                assert trained["seed"] == seed["seed"] and trained["objective"] == arm["objective"]
                assert (trained["steps"] == 2) == (arm["comparison"] == "equal_pictures")
    spent = arms["synthetic"]["seeds"][0]["seconds"]
    assert spent["paint"] > 0 < spent["train"] and arms["real"]["seeds"][0]["seconds"]["paint"] == 0
    assert poc["chosen_hybrid"] in ("hybrid-0.25", "hybrid-0.5")
    assert poc["recommendation"]["reason"] == "too_few_photos"
    steps = poc["costs"]["steps"]
    assert {step["kind"] for step in steps} == {"paint", "train", "evaluate"} and len(
        {s["name"] for s in steps}
    ) == len(steps)
    assert all(step["kwh"] == pytest.approx(step["seconds"] * 100 / 3.6e6, rel=1e-3) for step in steps)
    assert len(poc["commands"]) == 3 + 2 * 6 + 2 * 7 + 2 * 2  # painted, trained, measured, validated
    assert table(poc).row_count == len(arms)
    assert len(list(read_pictures(out / "painted/part-1"))) == 12

    before = stamps(out, "painted/*/*", "runs/**/*", "measured/**/*", "*.csv", "*.yaml")
    assert run_poc(config) == poc
    assert stamps(out, "painted/*/*", "runs/**/*", "measured/**/*", "*.csv", "*.yaml") == before
    with pytest.raises(UserError, match="holds another run: its --steps is 2, not 3"):
        run_poc(tiny(**{**to_dict(config), "steps": 3, "prompts": config.prompts, "out": out}))
    assert stamps(out, "runs/**/*") == {path: time for path, time in before.items() if "/runs/" in str(path)}


def test_a_command_of_it_finds_its_own_folder_done(tiny: Tiny, tmp_path: Path) -> None:
    """What `commands` says is what was done: each, given again, changes nothing."""
    import shlex

    from stablerep import cli

    poc = run_poc(tiny(equal_cost=False, arms=("real", "synthetic")))
    before = stamps(tmp_path / "out", "painted/*/*", "runs/**/*", "measured/**/*")
    for command in poc["commands"]:
        prog, *argv = shlex.split(command)
        {"stablerep-gen": cli.gen, "stablerep-train": cli.train, "stablerep-eval": cli.evaluate}[prog](argv)
    assert stamps(tmp_path / "out", "painted/*/*", "runs/**/*", "measured/**/*") == before


def test_an_adapted_generator_paints(tiny: Tiny, tmp_path: Path) -> None:
    asked = tmp_path / "adapt.yaml"
    asked.write_text("rank: 2\nsteps: 2\nupscale: true\nsample_every: 0\nheld_out: 0.2\nvalidate_every: 1\n")
    poc = run_poc(tiny(equal_cost=False, arms=("real", "synthetic"), adapt=asked))
    table = (tmp_path / "out/tables/adapt.csv").read_text()
    assert table.count(",train") == 9 and ",test" not in table
    first, second = poc["commands"][:2]
    assert first.startswith("stablerep-adapt --photos ") and "--rank 2" in first
    assert f"--lora {tmp_path / 'out/adapted'}:1" in second
    assert poc["costs"]["steps"][0]["kind"] == "adapt"
    shards = stamps(tmp_path / "out", "painted/*/*")
    assert run_poc(tiny(equal_cost=False, arms=("real", "synthetic"), adapt=asked)) == poc
    assert stamps(tmp_path / "out", "painted/*/*") == shards


def test_a_dry_run_bills_and_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(seeds=2, watts=50.0, usd_per_hour=3.0, steps=100)
    bill = estimate(config)
    assert not (tmp_path / "out").exists()
    items = {item.name: item for item in bill.items}
    assert items["paint"].images == 24 and items["train real"].steps == 200
    assert items["train real-longer"].seconds == pytest.approx(
        items["train synthetic"].seconds + 2 * items["paint"].seconds, rel=0.02
    )
    assert items["paint"].seconds == pytest.approx(24 / bill.rates.images_per_second)
    assert bill.seconds == pytest.approx(sum(item.seconds for item in bill.items))
    lines = str(bill).splitlines()
    assert lines[0].split() == ["pictures", "steps", "seconds", "kWh", "USD"] and "images/s painted" in lines[-1]
    assert lines[-2].split()[-1] == f"{bill.seconds / 3600 * 3:,.2f}"


def test_a_budget_of_seconds_is_turned_into_pictures_and_stays_so(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stablerep.poc import dry_run

    measured: list[int] = []

    def measure(*_: object) -> dry_run.Rates:
        measured.append(1)
        return dry_run.Rates(images_per_second=1.0, step_seconds=1.0, evaluate_seconds=0.5, device="cpu")

    monkeypatch.setattr(dry_run, "measure_rates", measure)
    # Two trainings of two steps and two evaluations cost 5 s; 15 s are left for pictures, of which 12 make prompts.
    fields = {"budget_pictures": None, "budget_seconds": 20.0, "equal_cost": False, "arms": ("real", "synthetic")}
    poc = run_poc(tiny(**fields))
    assert {arm["name"]: arm["images"] for arm in poc["arms"]} == {"real": 9, "synthetic": 12}
    run_poc(tiny(**fields))
    assert len(measured) == 1
    dollars = fields | {"budget_seconds": None, "budget_usd": 0.001, "usd_per_hour": 1.0, "out": tmp_path / "poor"}
    with pytest.raises(UserError, match=r"--budget-usd 0\.001 pays for nothing: about 9 s are needed"):
        run_poc(tiny(**dollars))
    run_poc(tiny(**dollars | {"budget_usd": 0.01}))  # the folder was not taken


def test_predictions_are_read_where_an_evaluation_kept_them(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    assert read_right(path, "linear_top1") is None
    np.savez(path, label=np.array([0, 1, 2]), linear=np.array([0, 1, 1]))
    assert read_right(path, "linear_top1").tolist() == [True, True, False]  # type: ignore[union-attr]
    assert read_right(path, "knn_top1") is None


def test_pretrained_weights_are_compared_where_they_are_on_disk(
    tiny: Tiny, tmp_path: Path, no_network: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="stablerep.poc")
    arms = ("pretrained", "real", "synthetic")
    assert with_pretrained(tiny(arms=arms)).pretrained == ()
    assert "no pretrained weights of resnet10t on disk" in caplog.text
    in_cache(no_network, "resnet10t.c3_in1k")
    config = tiny(arms=arms, equal_cost=False)
    assert with_pretrained(config).pretrained == ("resnet10t.c3_in1k",)
    poc = run_poc(config)
    (pretrained,) = (arm for arm in poc["arms"] if arm["kind"] == "pretrained")
    assert pretrained["name"] == "pretrained-resnet10t.c3_in1k" and pretrained["images"] == 0
    (no_network / "models--timm--resnet10t.c3_in1k").rename(tmp_path / "gone")
    assert run_poc(config) == poc  # what was measured stays so
