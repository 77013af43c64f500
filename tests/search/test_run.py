"""Searches as a user meets them, on the embedded generator; and what becomes of trials that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import stablerep
from stablerep import cli
from stablerep.config import UserError, from_fields
from stablerep.generate.config import GenerateConfig
from stablerep.search import dry_run, run
from stablerep.search.config import SearchConfig
from stablerep.search.proxy import open_proxy
from stablerep.search.summary import summarise
from stablerep.search.trial import Bench, Outcome
from stablerep.shards import read_pictures
from stablerep.train.config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")

CALL = "import json, sys, stablerep; stablerep.search(**json.loads(sys.argv[1]))"


def start(fields: dict[str, Any], **changes: Any) -> subprocess.Popen[str]:
    flags = json.dumps(
        {name: str(value) if isinstance(value, Path) else value for name, value in (fields | changes).items()}
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", CALL, flags], env=environment, stderr=subprocess.PIPE, text=True)


def numbers(results: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            row["number"],
            row["state"],
            row["params"],
            row["values"]["score"],
            row["values"]["proxy"],
            row["values"]["images"],
        )
        for row in results["trials"]
    ]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level("INFO", "stablerep.search")
    return lambda: [record.message for record in caplog.records if record.name == "stablerep.search"]


def test_a_search_that_is_killed_goes_on_to_the_same_end(fields: dict[str, Any], tmp_path: Path, said: Any) -> None:
    whole = stablerep.search(**fields, budget_pictures=36)
    assert [row["state"] for row in whole["trials"]] == ["complete"] * 2
    assert any("trial 1: knn_top1" in line and "left: " in line for line in said())

    killed = fields | {"out": tmp_path / "killed", "budget_pictures": 36}
    first = start(killed)
    painted = tmp_path / "killed/trials/0000/painted/dataset.json"
    while not painted.exists():
        assert first.poll() is None, first.stderr
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    again = stablerep.search(**killed)
    assert numbers(again) == numbers(whole)
    assert again["best"] == whole["best"] and json.loads((tmp_path / "killed/search.json").read_text()) == again

    # What comes out, as the commands take it.
    best = next(row for row in whole["trials"] if row["number"] == whole["best"])
    flags = yaml.safe_load((fields["out"] / "best.yaml").read_text())
    painting = ("guidance_scale", "num_inference_steps", "scheduler", "negative_prompt", "num_images_per_prompt")
    assert {name: flags[name] for name in painting} == {name: best["params"][name] for name in painting}
    cli.gen(["--config", str(fields["out"] / "best.yaml")])
    folder = fields["out"] / f"trials/{whole['best']:04}/painted"
    assert [data for _, data in read_pictures(fields["out"] / "best")] == [data for _, data in read_pictures(folder)]
    lines = "\n".join(summarise(whole))
    assert f"best: trial {whole['best']}, " in lines and "% of 18 validation photos" in lines
    assert "front of score against images" in lines and "a rerun of trial" in lines
    for trial in (fields["out"] / "trials").iterdir():
        assert sorted(path.name for path in trial.iterdir()) == [
            "measured",
            "painted",
            "result.json",
            "seconds.json",
            "trained",
        ]
        assert not (trial / "trained/checkpoints").exists()


def test_best_train_yaml_mixes_as_the_trial_did(fields: dict[str, Any], tmp_path: Path) -> None:
    of_classes = {"prompts": None, "classes": write_classes(tmp_path), "num_prompts": 4, "template": "concept_look"}
    results = stablerep.search(**fields | of_classes | {"trials": 1, "real_share": 0.25})
    trial = fields["out"] / "trials/0000"
    mixed = yaml.safe_load((trial / "trained/config.yaml").read_text())["data"]
    assert [text.rpartition(":")[2] for text in mixed] == ["0.75", "0.25"] and mixed[1].startswith(str(fields["out"]))
    assert results["trials"][0]["params"]["template"] == "concept_look"
    cli.gen(["--config", str(fields["out"] / "best.yaml")])
    out = ["--out", str(tmp_path / "encoder"), "--device", "cpu"]
    cli.train(["--config", str(fields["out"] / "best_train.yaml"), *out])
    weights = [path / "exported/model.safetensors" for path in (trial / "trained", tmp_path / "encoder")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def write_classes(folder: Path) -> Path:
    path = folder / "classes.txt"
    path.write_text("t-shirt\ntrouser\nankle boot\n")
    return path


def test_a_proxy_ranks_without_training(fields: dict[str, Any]) -> None:
    results = stablerep.search(**fields | {"score": "proxy", "calibration_trials": 0, "num_images_per_prompt": 2})
    assert not list(fields["out"].glob("trials/*/trained"))
    assert [row["values"]["measured"] for row in results["trials"]] == [None, None]
    assert all(row["values"]["score"] == row["values"]["proxy"] < 0 for row in results["trials"])
    assert results["proxy"]["rank_correlation"] is None and results["proxy"]["name"] == "frechet of pixels"


def test_the_same_out_with_other_ranges_is_refused(fields: dict[str, Any], faked: list[int], tmp_path: Path) -> None:
    stablerep.search(**fields)
    for changes, said in (
        ({"guidance_scale": (1.0, 4.0)}, r"its --guidance-scale is \[1.0, 8.0\], not \[1.0, 4.0\]"),
        ({"scheduler": "ddim"}, "its --scheduler is"),
        ({"seed": 5}, "its --seed is 0, not 5"),
    ):
        with pytest.raises(UserError, match=said):
            stablerep.search(**fields | changes)
    Path(fields["train"]).write_text(Path(fields["train"]).read_text().replace("steps: 3", "steps: 4"))
    with pytest.raises(UserError, match="train: steps is 3, not 4"):
        stablerep.search(**fields)
    stablerep.search(**fields | {"trials": 3, "train": restored(fields)})  # a larger budget goes on
    assert faked == [0, 1, 2]
    fields["prompts"].write_text(fields["prompts"].read_text().replace("dark", "black"))
    with pytest.raises(UserError, match="its --prompts is"):
        stablerep.search(**fields | {"train": restored(fields)})


def restored(fields: dict[str, Any]) -> str:
    path = Path(fields["train"])
    path.write_text(path.read_text().replace("steps: 4", "steps: 3"))
    return str(path)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trials of no time, which score their guidance; their numbers."""
    done: list[int] = []

    def fake(bench: Bench, number: int, settings: Any, folder: Path, look: Any = None) -> Outcome:
        done.append(number)
        folder.mkdir(parents=True, exist_ok=True)
        score = settings.guidance_scale + settings.seed
        return Outcome("complete", score, score, 1.0, -score, None, 6 * settings.num_images_per_prompt, {"paint": 2.0})

    monkeypatch.setattr(run, "run_trial", fake)
    return done


def test_a_grid_gives_the_curve(fields: dict[str, Any], faked: list[int], said: Any) -> None:
    grid = fields | {"grid": ("guidance_scale", "1", "2", "4"), "seeds": 2, "trials": None, "num_inference_steps": 2,
                     "num_images_per_prompt": 2, "scheduler": "ddim"}  # fmt: skip
    results = stablerep.search(**grid)
    assert [(p["guidance_scale"], p["score"]) for p in results["guidance_curve"]] == [(1, 1.5), (2, 2.5), (4, 4.5)]
    assert all(point["ci95"] > 0 for point in results["guidance_curve"])
    assert results["best"] == 2 and (fields["out"] / "guidance.png").stat().st_size > 5000  # its first seed
    assert results["proxy"]["rank_correlation"] == -1
    assert "6 of 6 points" in said()[-1]
    assert "score by guidance scale: 1: 1.5 ± " in "\n".join(summarise(results))
    stablerep.search(**grid)
    assert len(faked) == 6


def test_a_budget_in_pictures_and_dollars(fields: dict[str, Any], faked: list[int]) -> None:
    limited = fields | {"trials": None, "budget_pictures": 100, "usd_per_hour": 3.6}
    results = stablerep.search(**limited)
    images = [row["values"]["images"] for row in results["trials"]]
    assert 100 - 18 < sum(images) <= 100
    assert results["trials"][0]["values"]["usd"] == pytest.approx(0.002) and results["pareto_cost"] == "images"
    dollars = fields | {"trials": None, "budget_usd": 0.007, "usd_per_hour": 3.6, "out": fields["out"] / "usd"}
    assert len(stablerep.search(**dollars)["trials"]) == 3  # 7 s of 2 s each


def test_a_trial_that_fails_is_kept_and_said(
    fields: dict[str, Any], faked: list[int], monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    fake = run.run_trial

    def failing(bench: Bench, number: int, *args: Any) -> Outcome:
        if number == fails:
            raise UserError("no gradient was finite")
        return fake(bench, number, *args)

    monkeypatch.setattr(run, "run_trial", failing)
    fails = 0
    with pytest.raises(UserError, match=r"^trial 0 \(guidance 2, .*\): no gradient was finite"):
        stablerep.search(**fields)  # nothing has shown that the settings are sound
    fails = 1
    results = stablerep.search(**fields | {"trials": 3})
    assert [row["state"] for row in results["trials"]] == ["complete", "failed", "complete"]
    assert results["trials"][1]["reason"] == "no gradient was finite" and results["best"] in (0, 2)
    assert any("trial 1: failed: no gradient was finite" in line for line in said())
    assert "(2 complete, 1 failed)" in summarise(results)[0]


def test_dry_run_says_what_the_budget_allows(fields: dict[str, Any], faked: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(dry_run, "run_trial", run.run_trial)
    config = from_fields(SearchConfig, fields | {"trials": None, "budget_pictures": 100, "dry_run": True})
    said = dry_run.estimate(config, open_proxy(config))
    assert "18 pictures, 2 s: guidance 2, 2 steps ddim, 3 a prompt" in said and "about 5 trials" in said
    assert not fields["out"].exists()
    stablerep.search(**fields | {"trials": 2})
    assert "mean of 2 trials" in dry_run.estimate(config, open_proxy(config)) and faked == [0, 0, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": "none.csv"}, "--prompts none.csv does not exist"),
        ({"real": "nowhere"}, "--real nowhere: no such folder"),
        ({"num_images_per_prompt": (1, 3)}, "--num-images-per-prompt from 1 is too few for the 2 views"),
        ({"budget_pictures": 17}, "--budget-pictures 17 is less than the 18 pictures"),
        ({"features": "untrained:resnt10t"}, "--features untrained:resnt10t"),
        ({"train": "none.yaml"}, "--train none.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    fields: dict[str, Any], changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = []
    for name, value in (fields | changes).items():
        values = value if isinstance(value, tuple) else (value,)
        argv += ["--" + name.replace("_", "-"), *map(str, values)]
    with pytest.raises(SystemExit) as stop:
        cli.search(argv)
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("stablerep-search: ") and said in line
    assert not (fields["out"] / "search.json").exists()


def test_prompts_of_other_classes_are_one_line(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["prompts"].write_text("prompt,class\na photo of a cat,cat\n")
    with pytest.raises(
        UserError, match=r"matches no class of --real .*: it has cat, the photos have ankle_boot, t-shirt"
    ):
        stablerep.search(**fields)
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"--classes .* matches no class of --real"):
        stablerep.search(**fields | {"prompts": None, "classes": tmp_path / "classes.txt", "num_prompts": 1})
    assert not fields["out"].exists()


def test_generate_and_train_files_may_not_set_what_a_search_cannot_do(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["generate"].write_text("ray: local\n")
    with pytest.raises(UserError, match=r"--generate .* sets ray; leave it out"):
        stablerep.search(**fields)
    fields["generate"].write_text("guidance: 2\n")
    with pytest.raises(UserError, match="did you mean guidance_scale"):
        stablerep.search(**fields)


def test_best_yaml_has_only_fields_of_the_commands(fields: dict[str, Any], faked: list[int]) -> None:
    stablerep.search(**fields)
    for name, cls in (("best.yaml", GenerateConfig), ("best_train.yaml", TrainConfig)):
        flags = yaml.safe_load((fields["out"] / name).read_text())
        assert from_fields(cls, {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()})
