"""From folders to files: what is counted, what is missing, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

import stablerep
from stablerep import cli
from stablerep.report.config import ReportConfig
from stablerep.report.costs import bill_of
from stablerep.report.evidence import gather
from stablerep.report.failures import failures_of, wilson
from stablerep.report.thumbnails import Thumbnails, read_where
from tests.report.poc_folder import poc
from tests.test_cli import refused


def bill(costs: dict[str, Any] | None = None, **prices: float) -> Any:
    return bill_of(costs or poc()["costs"], ReportConfig(run=Path(), **prices))


def test_the_bill_adds_up() -> None:
    costs = poc()["costs"]
    seconds = sum(step["seconds"] for step in costs["steps"])
    found = bill()
    assert found.usd == pytest.approx(seconds / 3600 * 2.5)
    assert found.kwh == pytest.approx(sum(step["kwh"] or 0 for step in costs["steps"])) and found.kwh_steps == 10
    painting = [step for step in costs["steps"] if step["kind"] == "paint"]
    assert found.painted == 9000
    assert found.per_thousand == pytest.approx(sum(step["seconds"] for step in painting) / 3600 * 2.5 / 9)
    entered = bill(usd_per_hour=0.0, usd_per_kwh=0.3, watts=700)
    unmeasured = sum(step["seconds"] for step in costs["steps"] if step["kwh"] is None) / 3600 * 0.7
    assert entered.is_entered and entered.kwh == pytest.approx(found.kwh + unmeasured)
    assert entered.usd == pytest.approx(entered.kwh * 0.3)
    free = bill(costs | {"usd_per_hour": None})
    assert free.usd is free.per_thousand is free.threshold is free.break_even is None


def test_the_break_even_is_where_both_cost_the_same() -> None:
    even = bill(usd_per_photo=0.01, usd_per_label=0.002).break_even
    assert even.photo == pytest.approx(0.012)
    n = even.pictures
    assert n * even.photo == pytest.approx(even.fixed + n * even.paint) and even.fixed > 0
    assert bill(usd_per_photo=1e-6).break_even.pictures is None
    assert bill().threshold == pytest.approx((1240 + 3 * 410 + 7) / 3600 * 2.5 / 9000)


@pytest.mark.parametrize(("right", "photos"), [(0, 5), (5, 5), (3, 7), (120, 200)])
def test_intervals_of_a_class_are_wilsons(right: int, photos: int) -> None:
    expected = binomtest(right, photos).proportion_ci(method="wilson")
    assert wilson(100 * right / photos, photos) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)


def test_failures_are_where_it_is_furthest_behind(poc_folder: Path) -> None:
    evidence = gather(poc_folder)
    failures = failures_of(evidence)
    assert failures is not None and (failures.arm, failures.rival) == ("synthetic", "real")
    accuracy = {
        arm: np.mean([[row["accuracy"] for row in each["per_class"]] for each in evidence.measured[arm]], axis=0)
        for arm in ("synthetic", "real")
    }
    behind = accuracy["real"] - accuracy["synthetic"]
    names = [row["class"] for row in evidence.measured["real"][0]["per_class"]]
    assert [row.name for row in failures.classes] == [names[at] for at in np.argsort(-behind)]
    assert failures.classes[0].behind == pytest.approx(behind.max())
    worst = names.index(failures.classes[0].name)
    assert failures.classes[0].taken_for == names[(worst + 3) % len(names)]


def test_accuracy_by_class_is_found_where_an_evaluation_of_many_probes_has_it(poc_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(poc_folder, folder, ignore=shutil.ignore_patterns("painted"))
    for path in (folder / "measured").rglob("results.json"):
        results = json.loads(path.read_text())
        rows = [
            {"class": row["class"], "photos": row["photos"], "recall": row["accuracy"]} for row in results["per_class"]
        ]
        rows[-1] |= {"photos": 0, "recall": None}
        probes = {"linear": {"per_class": rows, "confusion": results.pop("confusion"), "top1_ci95": [80.0, 83.0]}}
        path.write_text(json.dumps({k: v for k, v in results.items() if k != "per_class"} | {"probes": probes}))
    expected, found = failures_of(gather(poc_folder)), failures_of(gather(folder))
    assert expected is not None and found is not None and found.arm == "synthetic"
    assert list(found.classes) == [row for row in expected.classes if row.name != rows[-1]["class"]]
    (folder / "poc.json").unlink()
    arms = {arm["name"]: arm for arm in gather(folder).poc["arms"]}
    assert arms["measured/synthetic/seed-0"]["ci95"] == {"linear_top1": 1.5, "few_shot_10": 0.8, "knn_top1": None}


def test_a_half_line_of_a_running_training_is_left_out(poc_folder: Path) -> None:
    curve = gather(poc_folder).losses["synthetic", 0]
    assert len(curve) == 100 and curve[-1][0] == 495


@pytest.mark.parametrize("gone", ["quality", "search", "painted", "runs", "measured", "split.csv", "photos"])
def test_a_part_may_be_missing(poc_folder: Path, tmp_path: Path, gone: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(poc_folder, folder, ignore=shutil.ignore_patterns(gone))
    page = stablerep.report(run=folder, lang="ja", usd_per_photo=0.2)
    assert page == folder / "report.ja.html" and len(page.read_bytes()) < 600_000
    assert "合成画像は有効です" in page.read_text()


def test_runs_that_were_never_put_together(poc_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "loose"
    shutil.copytree(poc_folder / "painted", folder / "painted")
    for name in ("synthetic", "real"):
        shutil.copytree(poc_folder / "runs" / name / "seed-0", folder / name)
        measured = folder / "measured" / name
        shutil.copytree(poc_folder / "measured" / name / "seed-0", measured)
        results = json.loads((measured / "results.json").read_text())
        (measured / "results.json").write_text(json.dumps(results | {"checkpoint": f"/gone/{name}"}))
    data = [{"data": "painted/guidance_2:3", "pictures": 60}, {"data": "photos", "pictures": 7}]
    shutil.copytree(folder / "painted" / "guidance_2", folder / "guidance_2")
    (folder / "synthetic" / "data.json").write_text(json.dumps(data))
    evidence = gather(folder)
    assert not evidence.is_poc and evidence.missing == ["poc", "quality", "search"]
    kinds = {arm["name"]: (arm["kind"], arm["synthetic_images"], arm["real_images"]) for arm in evidence.poc["arms"]}
    assert kinds == {"measured/real": ("other", 0, 0), "measured/synthetic": ("hybrid", 60, 7)}
    assert sorted(arm for arm, _ in evidence.losses) == ["measured/real", "measured/synthetic"]
    text = stablerep.report(run=folder).read_text()
    assert "there is no recommendation" in text and "Hybrid, 10 % real" in text and "stablerep-quality" in text


def test_pictures_of_a_search_are_not_those_of_the_run(poc_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(poc_folder, folder)
    shutil.copytree(folder / "painted" / "guidance_1", folder / "search" / "trials" / "0")
    assert [path.name for path in gather(folder).painted] == ["guidance_1", "guidance_2", "guidance_4"]


def test_the_same_folder_gives_the_same_bytes(poc_folder: Path, tmp_path: Path) -> None:
    pages = [stablerep.report(run=poc_folder, out=tmp_path / f"{n}.html").read_bytes() for n in range(2)]
    assert pages[0] == pages[1] and len(pages[0]) < 400_000


def test_pictures_of_every_kind_and_damaged_ones(tmp_path: Path, poc_folder: Path) -> None:
    thumbnails, draw = Thumbnails(), np.random.default_rng(0)
    kinds = {
        "deep.png": Image.fromarray(draw.integers(0, 4000, (300, 200), dtype=np.uint16)),
        "clear.png": Image.fromarray(draw.integers(0, 255, (50, 40, 4), dtype=np.uint8), "RGBA"),
        "large.jpg": Image.fromarray(draw.integers(0, 255, (900, 1200, 3), dtype=np.uint8)),
        "palette.gif": Image.new("P", (20, 20)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        made = thumbnails.of(read_where(name, [tmp_path]))
        assert made and max(made.width, made.height) <= 112 and made.url.startswith("data:image/webp;base64,")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:900])
    (tmp_path / "none.jpg").write_bytes(b"not a picture")
    for name in ("cut.jpg", "none.jpg", "gone.jpg"):
        assert thumbnails.of(read_where(name, [tmp_path])) is None
    assert thumbnails.unreadable == 3
    in_a_tar = read_where("painted/guidance_2/000000.tar/000000001.1.jpg", [tmp_path, poc_folder])
    assert in_a_tar and in_a_tar[:2] == b"\xff\xd8"
    assert read_where("painted/guidance_2/000000.tar/none.jpg", [poc_folder]) is None


def test_refused_in_one_line(tmp_path: Path, poc_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def says(*argv: object) -> str:
        return refused(cli.report, [str(word) for word in argv], capsys)

    assert "is no folder" in says(tmp_path / "nowhere") and "is no folder" in says(poc_folder / "poc.json")
    assert "holds neither poc.json nor runs" in says(tmp_path)
    assert "did you mean ja" in says(poc_folder, "--lang", "jp")
    for wrong in ("-1", "inf", "nan"):
        assert "--watts must be a number from 0 on" in says(poc_folder, f"--watts={wrong}")
    assert "is a folder; give the name of a file" in says(poc_folder, "--out", tmp_path)
    assert "lies in no folder that exists" in says(poc_folder, "--out", tmp_path / "no" / "page.html")
    path = tmp_path / "poc.json"
    path.write_text('{"version": 1, "arms": [')
    assert "poc.json cannot be read" in says(tmp_path)
    path.write_text("[]")
    assert "holds no mapping" in says(tmp_path)
    path.write_text(json.dumps(poc() | {"version": 2}))
    assert "is of version 2, this stablerep reads 1" in says(tmp_path)
    for section, name in (("costs", "steps"), ("recommendation", "a"), ("data", "test")):
        told = poc()
        del told[section][name]
        path.write_text(json.dumps(told))
        assert f"is damaged: {section}.{name} is missing" in says(tmp_path)
    told = poc()
    del told["arms"][1]["mean"]
    path.write_text(json.dumps(told))
    assert "is damaged: arms[1].mean is missing" in says(tmp_path)
    path.write_text(json.dumps(poc()))
    (tmp_path / "quality.json").write_text('{"features": "pixels"}')
    assert "quality.json is damaged: real_images is missing; run the same stablerep-quality" in says(tmp_path)
    assert not list(tmp_path.glob("*.html*"))


def test_values_at_the_edges_do_not_break_it(tmp_path: Path) -> None:
    told = poc()
    told["arms"][0]["mean"] = {"linear_top1": 100.0, "few_shot_10": None, "knn_top1": 0.0}
    told["arms"][0]["ci95"] = {"linear_top1": None, "few_shot_10": None, "knn_top1": None}
    told["comparisons"][0] |= {"ci95": None, "p": None}
    told["costs"]["steps"] = [{"name": "paint", "kind": "paint", "seconds": 0.0, "images": 1, "kwh": None}]
    told["arms"] = [told["arms"][0], told["arms"][5] | {"comparison": "odd"}]
    (tmp_path / "poc.json").write_text(json.dumps(told))
    for prices in ({}, {"usd_per_photo": 0.0}, {"usd_per_photo": math.pi, "usd_per_label": 1e6}):
        assert stablerep.report(run=tmp_path, **prices).stat().st_size > 10_000
    (tmp_path / "poc.json").write_text(json.dumps(told | {"arms": [], "commands": [], "comparisons": []}))
    assert "no recommendation" in stablerep.report(run=tmp_path).read_text()
