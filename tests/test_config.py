from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from stablerep.config import UserError, check_choice, fingerprint, from_fields, load, parse, save
from stablerep.run_folder import refuse_other_run


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A toy."""

    out: Path
    data: tuple[str, ...] = ()
    steps: int = 3
    flip: bool = True
    size: int | None = None


def test_flags_win_over_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text("out: a\ndata: [x, 'y:2']\nsteps: 7\nflip: false\n")
    toy = parse(Toy, ["--config", str(file), "--steps", "9"], "toy")
    assert toy == Toy(out=Path("a"), data=("x", "y:2"), steps=9, flip=False)
    # A repeated flag replaces the file's list, it does not add to it.
    assert parse(Toy, ["--config", str(file), "--data", "z"], "toy").data == ("z",)
    assert parse(Toy, ["--config", str(file), "--flip"], "toy").flip


@pytest.mark.parametrize(
    "argv", [["--data", "a", "b"], ["--data", "a", "--data", "b"], ["--data=a", "--steps", "3", "--data", "b"]]
)
def test_a_field_of_many_values_takes_them_behind_one_flag_or_several(argv: list[str]) -> None:
    assert parse(Toy, [*argv, "--out", "o"], "toy") == Toy(out=Path("o"), data=("a", "b"))
    assert parse(Toy, ["--out", "o", *argv], "toy") == Toy(out=Path("o"), data=("a", "b"))


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A config within a config."""

    toy: Toy
    also: str | None = None


def test_a_tilde_is_the_users_home_wherever_a_path_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "toy.yaml").write_text("out: ~/a\ndata: [~/x, 'y:2']\n")
    expected = Toy(out=tmp_path / "a", data=(f"{tmp_path}/x", "y:2"))
    assert parse(Toy, ["--config", "~/toy.yaml"], "toy") == parse(Toy, ["--config=~/toy.yaml"], "toy") == expected
    assert parse(Toy, ["--out=~/a", "--data", "~/x", "y:2"], "toy") == expected
    assert fingerprint(load(Toy, tmp_path / "toy.yaml")) == fingerprint(expected)
    fields = {"out": Path("~/a"), "data": ["~/x", "y:2"], "also": "~"}
    outer = from_fields(Outer, fields)
    assert outer.also == str(tmp_path) and fingerprint(outer.toy) == fingerprint(expected)
    assert from_fields(Outer, {"out": "a", "also": "~nobody"}).also == "~nobody"  # nobody's home, maybe a file's name


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    toy = Toy(out=tmp_path, data=("a", "b"), size=4)
    save(toy, tmp_path / "toy.yaml")
    loaded = load(Toy, tmp_path / "toy.yaml")
    assert fingerprint(loaded) == fingerprint(toy)
    assert fingerprint(Toy(out=tmp_path, data=("a",), size=4)) != fingerprint(toy)


@pytest.mark.parametrize("text", ["[1, 2]", "out: [", "otu: a\n"])
def test_a_bad_config_file_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parse(Toy, ["--config", str(file)], "toy")
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_check_choice_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean ddim"):
        check_choice("--scheduler", "ddmi", ("ddim", "euler"))
    many = [f"resnet{number}" for number in range(30)]
    with pytest.raises(UserError, match=r"^--arch 'resnet3t' is unknown; did you mean resnet3, \w+ or \w+\?$"):
        check_choice("--arch", "resnet3t", many)
    with pytest.raises(UserError, match=r"'xyz' is unknown; nothing like it is known$"):
        check_choice("--arch", "xyz", many)


def test_another_run_is_named_by_its_difference() -> None:
    refuse_other_run(Path("o"), {"a": 1}, {"a": 1})
    with pytest.raises(UserError, match=r"--guidance-scale is 2\.0, not 3\.0"):
        refuse_other_run(Path("o"), {"guidance_scale": 2.0}, {"guidance_scale": 3.0})
