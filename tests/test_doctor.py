"""The doctor names what is here, what is missing, and the mend."""

from __future__ import annotations

import pytest

from stablerep import doctor, native


def test_report_names_every_part() -> None:
    lines = doctor.report().splitlines()
    for name in ("python 3", *doctor.NEEDED, "native code"):
        assert any(line.startswith(name) for line in lines), name


def test_what_is_missing_comes_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, "no compiler was found"))
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "timm" else version(name))
    report = doctor.report()
    assert "timm is missing" in report
    assert "native code is missing: no compiler was found" in report
    assert "mend: pip install timm" in report
    assert "mend: pip install .  # in the repository" in report
    assert "nothing is missing" not in report
