"""One report: a folder in, one HTML file out."""

from __future__ import annotations

from pathlib import Path

from stablerep import __version__, atomic
from stablerep.config import UserError
from stablerep.report.config import ReportConfig
from stablerep.report.document import html_of
from stablerep.report.evidence import gather


def report(config: ReportConfig) -> Path:
    """Write the page, whole or not at all, and return its path. Nothing in the folder is changed.

    Raises:
        UserError: no folder of runs, a file in it that is damaged, or a place where no file can be written.
    """
    file = config.file
    if file.is_dir():
        raise UserError(f"--out {file} is a folder; give the name of a file")
    if not file.parent.is_dir() and config.out is not None:
        raise UserError(f"--out {file} lies in no folder that exists; make {file.parent} first")
    atomic.write(file, html_of(gather(config.run), config, __version__))
    return file
