"""Ranges, lists and grids: what is drawn lies in them, what is none is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from stablerep.config import UserError, from_fields, parse
from stablerep.search.config import SearchConfig
from stablerep.search.space import Settings, space_of


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def space(**changes: Any) -> Any:
    source = {} if "classes" in changes else {"prompts": "p.csv"}
    return space_of(from_fields(SearchConfig, {**source, "real": "r", "out": "o", "trials": 1, **changes}))


def test_draws_lie_in_the_ranges_and_reach_their_ends() -> None:
    searched = space(guidance_scale=(1.0, 4.0), num_images_per_prompt=(4, 6), scheduler=("ddim", "euler"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [searched.draw(study.ask()) for _ in range(300)]
    assert all(1 <= each.guidance_scale <= 4 and 10 <= each.num_inference_steps <= 50 for each in drawn)
    assert all(0 <= each.real_share <= 0.5 and each.template is None for each in drawn)
    assert {each.num_images_per_prompt for each in drawn} == {4, 5, 6}
    assert {each.scheduler for each in drawn} == {"ddim", "euler"}
    below_two = sum(each.guidance_scale < 2 for each in drawn)
    assert 110 < below_two < 190  # on a scale of doublings: half of 1 to 4 lies below 2


def test_the_start_is_the_recipe_within_the_ranges() -> None:
    start = space().start
    assert (start.guidance_scale, start.num_inference_steps, start.real_share) == (2.0, 50, 0.0)
    assert start.num_images_per_prompt == 10 and start.scheduler == "ddim"
    near = space(guidance_scale=(3.0, 8.0), num_inference_steps=(4, 12), num_images_per_prompt=4).start
    assert (near.guidance_scale, near.num_inference_steps, near.num_images_per_prompt) == (3.0, 12, 4)


def test_a_grid_is_every_combination_a_seed_after_the_other() -> None:
    words = ("guidance_scale", "1", "2.5", "num-inference-steps", "4", "8")
    grid = space(grid=words, seeds=2, scheduler="euler").grid
    assert [(p.seed, p.guidance_scale, p.num_inference_steps) for p in grid] == [
        (seed, scale, steps) for seed in (0, 1) for scale in (1.0, 2.5) for steps in (4, 8)
    ]
    assert {point.scheduler for point in grid} == {"euler"} and {point.num_images_per_prompt for point in grid} == {10}
    assert space().grid == []


def test_the_guidance_curve_of_the_examples_is_a_grid() -> None:
    path = Path(__file__).resolve().parents[2] / "examples/fashion/guidance.yaml"
    config = parse(SearchConfig, ["--config", str(path), "--out", "o"], "stablerep-search")
    grid = space_of(config).grid
    assert len(grid) == 18 and {point.guidance_scale for point in grid} == {1, 1.5, 2, 3, 4, 6}
    assert {(point.num_inference_steps, point.template) for point in grid} == {(12, "concept_look")}


def test_templates_are_for_classes() -> None:
    searched = space(classes="c.txt", template=("concept", "concept+concept_look"))
    assert searched.choices["template"] == ("concept", "concept+concept_look")
    assert "template" not in space().choices and "template" not in space().start.as_dict()


def test_settings_are_said_in_words() -> None:
    settings = Settings(
        guidance_scale=2.5, num_inference_steps=12, scheduler="ddim", negative_prompt="blur", num_images_per_prompt=4,
        real_share=0.25, template="concept",
    )  # fmt: skip
    assert str(settings) == "guidance 2.5, 12 steps ddim, without 'blur', concept, 4 a prompt, 25% real"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance_scale": (8.0, 1.0)}, "--guidance-scale 8 1 begins above its end; give 1 8"),
        ({"guidance_scale": (1.0, 2.0, 3.0)}, "is no range"),
        ({"guidance_scale": (1.0, 200.0)}, "--guidance-scale must be between 0 and 100, got 200"),
        ({"num_inference_steps": (0, 5)}, "--num-inference-steps must be between 1 and 1000, got 0"),
        ({"real_share": (0.0, 1.0)}, "--real-share must be between 0 and 0.95, got 1"),
        ({"scheduler": ("ddim", "dddim")}, "did you mean ddim"),
        ({"scheduler": ()}, "--scheduler needs a value"),
        ({"classes": "c.txt", "template": ("concept+concpt",)}, "did you mean concept"),
        ({"grid": ("guidance", "1")}, "did you mean guidance_scale"),
        ({"grid": ("guidance_scale",)}, "--grid guidance_scale needs values"),
        ({"grid": ("guidance_scale", "1", "two")}, "'two' is no number"),
        ({"grid": ("num_inference_steps", "1.5")}, "is no whole number"),
        ({"grid": ("guidance_scale", "101")}, "must be between 0 and 100, got 101"),
        ({"grid": ("guidance_scale", "1"), "scheduler": ("ddim", "euler")}, "--scheduler ddim euler is more than one"),
        ({"seeds": 3}, "--seeds 3 goes with --grid"),
        ({"trials": None}, "a search needs an end"),
        ({"trials": 0}, "--trials 0 is a budget of nothing"),
        ({"budget_pictures": 0}, "--budget-pictures 0 is a budget of nothing"),
        ({"budget_seconds": -1.0}, "--budget-seconds -1.0 is a budget of nothing"),
        ({"budget_usd": 5.0}, "--budget-usd 5 needs --usd-per-hour"),
        ({"budget_usd": 5.0, "usd_per_hour": 0.0}, "must be a price above 0"),
        ({"classes": "c.txt", "prompts": "p.csv"}, "one of them"),
        ({"score": "guess"}, "--score 'guess' is unknown"),
        ({"validation_share": 1.0}, "--validation-share must be between 0 and 1"),
    ],
)
def test_what_is_no_search_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refusal:
        space(**changes)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
