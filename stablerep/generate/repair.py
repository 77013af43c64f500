"""`stablerep-gen --repair OUT`: paint the damaged and the missing shards again."""

from __future__ import annotations

from typing import Any

from stablerep import shards
from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.verify import Verdict, verify
from stablerep.storage import Folder


def recorded_flags(out: Folder) -> dict[str, Any]:
    """The fields of the run that began in this folder.

    Raises:
        UserError: no folder of shards, or one whose dataset.json does not tell.
    """
    if not out.is_dir():
        raise UserError(f"--repair {out} is no folder; name the --out of a stablerep-gen run")
    dataset = shards.read_dataset(out)
    if dataset is None or "flags" not in dataset["run"]:
        raise UserError(
            f"--repair {out}: its dataset.json is missing, damaged or of an earlier version; "
            "run the stablerep-gen command it was made with: that writes it again and paints what is missing"
        )
    return dataset["run"]["flags"]


def repair(config: GenerateConfig) -> tuple[Verdict, Verdict]:
    """Verify the folder and paint its damaged and missing shards again: the verdicts before and after.

    A damaged shard stays as it is until its new tar is on the disk, so that a run whose prompts or model have gone
    loses nothing. Half files that a stopped run left behind are removed.

    Raises:
        UserError: no shards there, or inputs (prompts, model, flags) that are not those of the run.
    """
    if config.dry_run:
        raise UserError("--repair takes no --dry-run; --verify OUT says what is to be done")
    out = config.folder
    before = verify(out)
    if before.damaged:
        from stablerep.generate.run import generate  # seconds; not needed where nothing is wrong

        generate(config, again=before.damaged)
    for path in out.glob("*.partial"):
        path.unlink()
    return before, verify(out) if before.problems else before
