"""A list of guidance scales: a run of each, in a folder of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from stablerep.config import UserError, refuse_other_run
from stablerep.generate.config import GenerateConfig
from stablerep.generate.identity import identity_of
from stablerep.prompts import Prompt
from stablerep.storage import Folder

PREFIX = "guidance_"


def runs_of(config: GenerateConfig) -> list[GenerateConfig]:
    """The runs of a config, each with one guidance scale and the folder of its shards."""
    if isinstance(config.guidance_scale, float):
        return [config]
    return [
        dataclasses.replace(config, guidance_scale=scale, out=str(config.folder / folder_name(scale)))
        for scale in config.guidance_scale
    ]


def folder_name(guidance_scale: float) -> str:
    return PREFIX + repr(guidance_scale).removesuffix(".0")


def runs_in(out: Folder) -> list[Folder]:
    """The folders of the runs of a sweep; the folder itself where it holds none."""
    runs: list[Folder] = sorted((about.parent for about in out.glob(f"{PREFIX}*/dataset.json")), key=str)
    return runs if runs and not (out / "dataset.json").exists() else [out]


def shared_identity(config: GenerateConfig, prompts: Sequence[Prompt], weights_hash: str) -> dict[str, Any]:
    """What all runs of a sweep share; what chooses itself has its name in each dataset.json."""
    own = ("guidance_scale", "engine", "jpeg_encoder")
    return {name: value for name, value in identity_of(config, prompts, weights_hash).items() if name not in own}


def check_folder(out: Folder, identity: dict[str, Any]) -> None:
    """Refuse, before anything is painted, a folder that is not this sweep's or that the sweep may not go on in.

    Args:
        identity: what all runs of the sweep share, as their dataset.json holds it; scales may be added later.

    Raises:
        UserError: one run's shards, another sweep's, or files that are no run's.
    """
    if (out / "dataset.json").exists():
        raise UserError(f"--out {out} holds one run; choose another --out for several values of --guidance-scale")
    if not out.exists():
        return
    entries: list[Folder] = sorted(out.iterdir(), key=str)
    for entry in entries:
        if not entry.name.startswith(PREFIX) or not entry.is_dir():
            raise UserError(f"--out {out} holds files that are no run of ours ({entry.name}); choose an empty folder")
        about = entry / "dataset.json"
        if about.exists():
            earlier = _read_config(about)
            refuse_other_run(entry, {name: earlier[name] for name in identity if name in earlier}, identity)


def _read_config(path: Folder) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run the same command again") from error
