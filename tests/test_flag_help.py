"""The first look at a command, and the second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stablerep import cli
from stablerep.adapt.config import AdaptConfig
from stablerep.config import docstrings, flag_of, flat_fields
from stablerep.engines.config import COMMANDS as ENGINE
from stablerep.evaluate.config import EvaluateConfig
from stablerep.evaluate.quality.config import QualityConfig
from stablerep.flag_help import help_text
from stablerep.generate.config import GenerateConfig
from stablerep.poc.config import PocConfig
from stablerep.prompts.config import PromptsConfig
from stablerep.report.config import ReportConfig
from stablerep.search.config import SearchConfig
from stablerep.train.config import TrainConfig

CONFIGS = [
    GenerateConfig, PromptsConfig, AdaptConfig, TrainConfig, EvaluateConfig, QualityConfig, SearchConfig, PocConfig,
    ReportConfig, *ENGINE.values(),
]  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], command, *argv: str) -> str:
    try:
        command(list(argv))
    except SystemExit as stop:
        assert not stop.code
    return capsys.readouterr().out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_help_fits_one_screen_and_help_all_names_every_flag(config: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    first, everything = (help_text(config, "it", everything=everything) for everything in (False, True))
    assert first.count("\n") < 49  # and the prompt
    assert max(map(len, f"{first}\n{everything}".split("\n"))) <= 80
    for owner, field in flat_fields(config):
        flag = flag_of(field.name)
        assert f"  {flag}" in everything or flag_of(f"[no-]{field.name}") in everything
        assert docstrings(owner)[field.name], f"{flag} says nothing"


def test_the_first_look_is_what_the_fields_say() -> None:
    first, everything = (help_text(TrainConfig, "it", everything=everything) for everything in (False, True))
    assert "--arch STR" in first and "--min-scale" not in first and "--help-all" in first
    assert "Augmentation:" in everything and "--min-scale FLOAT" in everything and "--help-all" not in everything
    assert "--pretrained " in first and "(required)" in first and "(default: 0.0002)" in first


@pytest.mark.parametrize("width", [80, 120])
def test_one_command_or_several_say_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for name, command in cli.COMMANDS.items():
        for flag in ("--help", "-h", "--help-all"):
            assert (text := shown(capsys, command, flag)) == shown(capsys, cli.main, name, flag)
            assert text.startswith(f"usage: stablerep-{name}")
    listed = shown(capsys, cli.main)
    assert all(f"\n  {name}" in listed for name in cli.COMMANDS)
    assert shown(capsys, cli.main, "--version") == shown(capsys, cli.train, "--version") == "stablerep 0.1.0\n"
    with pytest.raises(SystemExit):
        cli.main(["trian"])
    assert "did you mean train" in capsys.readouterr().err


def test_help_waits_for_no_import() -> None:
    program = (
        "import sys; from stablerep import cli\ntry: cli.train(['--help'])\nexcept SystemExit: pass\n"
        "print(*sorted({'tyro', 'torch', 'timm', 'diffusers'} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stderr.split() == []


def test_help_into_a_pipe_that_closes_ends_in_silence() -> None:
    program = "import time; time.sleep(0.5); from stablerep import cli; cli.main(['gen', '--help-all'])"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout and run.stderr
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 0


@pytest.mark.parametrize(
    ("command", "words", "found"),
    [
        (cli.train, "stablerep-train --pre", "--precision --pretrained"),
        (cli.engine, "stablerep-engine build --dt", "--dtype"),
        (cli.main, "stablerep tr", "train"),
        (cli.main, "stablerep gen --num-im", "--num-images-per-prompt"),
    ],
)
def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path, command, words: str, found: str) -> None:
    (tmp_path / "script").write_text(shown(capsys, command, "--tyro-print-completion", "bash"))
    program = (
        "source $1; shift; word=$(complete -p $1); word=${word#*-F }; COMP_WORDS=($@); COMP_CWORD=$(($#-1));"
        "COMP_LINE=$*; COMP_POINT=${#COMP_LINE}; ${word%% *} $1; echo ${COMPREPLY[@]}"
    )
    run = subprocess.run(
        ["bash", "-c", program, "-", tmp_path / "script", *words.split()], capture_output=True, text=True
    )
    assert run.stdout.strip() == found, run.stderr


def test_a_shell_that_cannot_be_completed_in_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.gen(["--tyro-print-completion", "bsh"])
    assert "--tyro-print-completion 'bsh' is unknown; did you mean bash" in capsys.readouterr().err
