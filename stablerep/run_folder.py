"""The folder of a run: whose it is, and whether it may go on there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stablerep import atomic, distributed
from stablerep import config as configs
from stablerep.config import UserError
from stablerep.train.config import TrainConfig

CONFIG = "config.yaml"
ONLINE = "online.yaml"  # what the pictures that were painted for the run follow from
# What may differ when a run goes on: where it is, what it runs on and what it leaves behind, not what it computes.
FREE = ("out", "device", "checkpoint_every", "keep_checkpoints", "log_every")


def claim(config: TrainConfig, online: Mapping[str, Any] | None = None) -> Path:
    """Make --out the folder of this run, or see that it already is.

    Args:
        online: what the pictures of --online follow from.

    Raises:
        UserError: the folder is another run's, or holds files that are no run's.
    """
    out = Path(config.out)
    path = out / CONFIG
    if path.exists():
        configs.refuse_other_run(out, _identity(configs.load(TrainConfig, path)), _identity(config))
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; choose a folder")
    elif strangers := sorted(entry.name for entry in out.glob("*") if not entry.name.endswith(".partial")):
        raise UserError(
            f"--out {out} holds files that are no run of ours ({strangers[0]}, ...); choose an empty folder"
        )
    if online and (out / ONLINE).exists():
        earlier = yaml.safe_load((out / ONLINE).read_text())
        configs.refuse_other_run(out, _of_online(earlier), _of_online(online))
    distributed.barrier()  # nobody writes before everybody has looked
    if distributed.rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            configs.save(config, path)
        if online and not (out / ONLINE).exists():
            atomic.write(out / ONLINE, yaml.safe_dump(dict(online), sort_keys=False))
    return out


def _identity(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in configs.to_dict(config).items() if name not in FREE}


def _of_online(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"online: {name}": value for name, value in fields.items()}  # its batch_size is not ours
