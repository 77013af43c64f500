"""Who is trained on what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from stablerep.config import UserError, parse, to_dict
from stablerep.evaluate.config import EvaluateConfig
from stablerep.generate.config import GenerateConfig
from stablerep.poc.config import PocConfig
from stablerep.poc.inputs import read_inputs
from stablerep.poc.plan import Arm, Plan, make_plan, match_classes
from stablerep.poc.settings import ModelRef, command, read_settings
from stablerep.prompts import Prompt, read_prompts
from stablerep.train.config import TrainConfig
from tests.poc.conftest import CLASSES, write_photos

Tiny = Callable[..., PocConfig]


def plan_of(config: PocConfig, budget: int | None = None) -> tuple[Plan, dict[str, Arm]]:
    inputs = read_inputs(config, config.out)
    budget = budget or config.budget_pictures or 0
    plan = make_plan(config, inputs.settings, inputs.split, inputs.prompts, inputs.classes, budget)
    return plan, {arm.name: arm for arm in plan.arms}


def test_hybrids_take_the_first_parts_of_the_pictures_and_photos_for_the_rest(tiny: Tiny, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", dict.fromkeys(CLASSES, 40), first=200)
    lines = [f"a photo of a {tone} {name}\n" for name in CLASSES for tone in range(8)]
    (tmp_path / "prompts.txt").write_text("".join(lines))
    plan, arms = plan_of(tiny(budget_pictures=98, real_share=(0.25, 0.5, 0.75), batch_size=16))
    assert plan.images_per_prompt == 4 and plan.images == 96  # whole prompts
    assert [len(prompts) for prompts in plan.prompts] == [6, 6, 6, 6]
    for prompts in plan.prompts:  # every part shows every class
        assert {prompt.text.split()[-1] for prompt in prompts} == set(CLASSES)
        assert [prompt.id for prompt in prompts] == sorted(prompt.id for prompt in prompts)
    assert len({prompt.id for prompts in plan.prompts for prompt in prompts}) == 24
    for share, parts in ((0.25, 3), (0.5, 2), (0.75, 1)):
        hybrid = arms[f"hybrid-{share}"]
        photos = min(round(96 * share), len(arms["real"].photos))
        assert (hybrid.parts, hybrid.synthetic_images, len(hybrid.photos)) == (parts, 24 * parts, photos)
        assert hybrid.photos == arms["real"].photos[:photos]
        weights = [float(each.partition(":")[2] or 1) for each in plan.data_of(hybrid, Path("o"))]
        assert weights[-1] / sum(weights) == pytest.approx(share)
    assert arms["synthetic"].images == 96
    assert Counter(photo.label for photo in arms["hybrid-0.5"].photos)["bag"] == pytest.approx(48 * 24 / 75, abs=1)


def test_equal_weights_are_not_written(tiny: Tiny) -> None:
    plan, arms = plan_of(tiny())
    out = Path("o")
    assert plan.data_of(arms["synthetic"], out) == ("o/painted/part-1", "o/painted/part-2")
    assert plan.data_of(arms["hybrid-0.5"], out) == ("o/painted/part-1", "o/tables/hybrid-0.5.csv")
    assert plan.data_of(arms["real"], out) == ("o/tables/real.csv",)


def test_steps_are_those_of_the_epochs_over_the_synthetic_pictures(tiny: Tiny, tmp_path: Path) -> None:
    train = tmp_path / "epochs.yaml"
    train.write_text("epochs: 10\nviews_per_prompt: 4\n")
    plan, _ = plan_of(tiny(steps=None, train=str(train)))
    assert plan.steps == 10 * 6 * 4 // 8  # 6 prompts, 2 of them in a batch


@pytest.mark.parametrize(("budget", "painted", "per_prompt"), [(24, 2, 10), (60, 6, 10), (89, 6, 14), (600, 6, 100)])
def test_ten_pictures_of_each_prompt_or_more_where_the_budget_allows(
    tiny: Tiny, budget: int, painted: int, per_prompt: int
) -> None:
    plan, _ = plan_of(tiny(num_images_per_prompt=None, budget_pictures=budget))
    assert (sum(map(len, plan.prompts)), plan.images_per_prompt) == (painted, per_prompt)


def test_a_budget_below_a_prompt_is_one_line(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="the budget pays for 3 pictures, 0 prompts of 4, too few; 8 are needed"):
        plan_of(tiny(budget_pictures=3))
    with pytest.raises(UserError, match="too few for the --real-share asked for; about 16 are needed"):
        plan_of(tiny(budget_pictures=8, real_share=(0.25, 0.75)))
    with pytest.raises(UserError, match="--batch-size gives 2 groups a step, too few for 3 sources"):
        plan_of(tiny(real_share=(0.25, 0.5)))  # before anything is painted


def test_classes_of_prompts() -> None:
    def matched(*texts: str, classes: tuple[str, ...] = ("shirt", "t-shirt", "ankle_boot", "傷")) -> list[str]:
        return match_classes([Prompt(n, text) for n, text in enumerate(texts)], classes, Path("p.txt"))

    assert matched("A Shirt.", "two T-shirts", "an ankle  boot", "a shirtless man", "金属の傷") == [
        "shirt", "t-shirt", "ankle_boot", "", "傷",
    ]  # fmt: skip
    labelled = [Prompt(0, "scratch", label="Shirt"), Prompt(1, "a shirt", label=""), Prompt(2, "x", label="hat")]
    assert match_classes(labelled, ("shirt", "scratch"), Path("p.csv")) == ["shirt", "", ""]
    with pytest.raises(UserError, match=r"none of 1 prompts names a class of the real photos \(shirt, t-shirt"):
        matched("a red car")
    with pytest.raises(UserError, match="none of 1 prompts has a label that is a class"):
        match_classes([Prompt(0, "a shirt", label="car")], ("shirt",), Path("p.csv"))


def test_parts_keep_what_a_row_says_of_itself(tiny: Tiny, tmp_path: Path) -> None:
    table = tmp_path / "prompts.jsonl"
    table.write_text(
        '{"prompt": "a bag", "label": "bag", "guidance_scale": 3.5, "negative_prompt": "-"}\n'
        '{"prompt": "a “shoe”,\\twhite", "label": "sneaker", "seed": 7}\n{"prompt": "", "label": "bag"}\n'
    )
    config = tiny(prompts=table, budget_pictures=8)
    plan, _ = plan_of(config)
    plan.write(tmp_path / "out")
    read = [prompt for part in range(2) for prompt in read_prompts(plan.prompts_file(tmp_path / "out", part))]
    asked = [prompt for prompt in read_prompts(table) if prompt.text]  # one without text is not painted

    def without_id(prompts: list[Prompt]) -> set[tuple[object, ...]]:
        return {tuple(vars(prompt).values())[1:] for prompt in prompts}

    assert without_id(read) == without_id(asked)


def test_a_command_makes_the_config_again(tiny: Tiny) -> None:
    settings = read_settings(tiny(max_train=100))
    given = settings.painting(Path("a b.jsonl"), Path("o"), 3, 5, ModelRef("default", ("x:0.5", "y:1")))
    trained = settings.training("stablerep", ("one:0.25", "two words"), Path("o"), 1, 7)
    measured = settings.evaluating("run", "split.csv", Path("o"), 2, None)
    import shlex

    for cls, config in ((GenerateConfig, given), (TrainConfig, trained), (EvaluateConfig, measured)):
        prog, *argv = shlex.split(command(config))
        assert prog in ("stablerep-gen", "stablerep-train", "stablerep-eval")
        assert to_dict(parse(cls, argv, prog)) == to_dict(config)


def test_settings_of_files_and_flags_over_them(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "gen.yaml").write_text("guidance_scale: 3\nnum_inference_steps: 9\nimage-size: 16\n")
    settings = read_settings(tiny(generate=tmp_path / "gen.yaml", num_inference_steps=2))
    painting = settings.painting(Path("p"), Path("o"), 0, 4)
    assert (painting.guidance_scale, painting.num_inference_steps, painting.image_size) == (3.0, 2, 16)
    small = read_settings(tiny(train="small-data", arch=None, image_size=None, batch_size=None, steps=None))
    trained = small.training("simclr", ("d",), Path("o"), 0, 1)
    assert (trained.arch, trained.image_size, trained.head_hidden, trained.views) == ("resnet18", 96, 1024, 2)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("train", "objective: clip", "sets objective clip; each encoder has its own"),
        ("train", "data: x", "sets data, which the proof of concept says itself"),
        ("train", "epoch: 3", "field 'epoch' is unknown; did you mean epochs"),
        ("train", "[1, 2]", "must hold one mapping"),
        ("train", "views_per_prompt: 6", "--num-images-per-prompt 4 is below the training's views_per_prompt of 6"),
        ("generate", "prompts: x", "sets prompts, which the proof of concept says itself"),
        ("generate", "guidance_scale: [1, 2]", "takes one guidance_scale"),
    ],
)
def test_settings_that_do_not_go_are_one_line(tiny: Tiny, tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / "given.yaml").write_text(text)
    path = tmp_path / "given.yaml"
    with pytest.raises(UserError, match=said):
        read_settings(tiny(batch_size=12, **{name: path if name == "generate" else str(path)}))
    with pytest.raises(UserError, match="--train 'smal-data' is unknown; did you mean small-data"):
        read_settings(tiny(train="smal-data"))
