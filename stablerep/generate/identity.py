"""What a folder of shards was made from: its identity, and in which row a prompts file has changed since."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from stablerep import shards
from stablerep.config import UserError, refuse_other_run, to_dict
from stablerep.generate import scores
from stablerep.generate.config import GenerateConfig
from stablerep.prompts import Prompt
from stablerep.storage import Folder, read_all


def as_begun(config: GenerateConfig) -> GenerateConfig:
    """With `auto` the engine and the JPEG encoder that a folder was begun with, if it was."""
    if (dataset := shards.read_dataset(config.folder)) is None:
        return config
    begun = {"jpeg_encoder": "pil"} | dataset["config"]
    chosen = {name: begun[name] for name in ("engine", "jpeg_encoder") if getattr(config, name) == "auto"}
    return dataclasses.replace(config, **chosen)


def start_dataset(config: GenerateConfig, prompts: Sequence[Prompt], engine: str, weights_hash: str) -> None:
    """Begin or go on with the folder of a run.

    Raises:
        UserError: the folder holds another run, or the same one with other prompts, and which row differs.
    """
    identity = check_same_run(config, prompts, engine, weights_hash)
    # Where the folder lies and who paints into it is not the run's, but the call's.
    flags = {name: value for name, value in to_dict(config).items() if name not in ("out", "staging", "ray", "gpus")}
    shards.start_dataset(config.folder, identity, {"num_prompts": len(prompts), "flags": flags})


def check_same_run(config: GenerateConfig, prompts: Sequence[Prompt], engine: str, weights_hash: str) -> dict[str, Any]:
    """What the bytes of the shards follow from, after a look whether --out holds the same run, if any. Writes nothing.

    Raises:
        UserError: as start_dataset.
    """
    out = config.folder
    identity = identity_of(config, prompts, weights_hash) | {"engine": engine}
    if (dataset := shards.read_dataset(out)) is None:
        return identity
    if {**dataset["config"], "prompts": identity["prompts"]} == identity != dataset["config"]:
        raise UserError(
            f"--prompts {config.prompts} is not what the run in --out {out} began with: "
            f"{_difference(out, prompts, dataset['run'].get('num_prompts'))}; "
            "choose another --out, or bring the prompts back to go on"
        )
    refuse_other_run(out, dataset["config"], identity)
    return identity


def identity_of(config: GenerateConfig, prompts: Sequence[Prompt], weights_hash: str) -> dict[str, Any]:
    """What makes a run this one and no other, but for an engine that chooses itself."""
    made_of = {"prompts": hash_prompts(prompts), "model": weights_hash}
    return config.picture_fields() | scores.identity(config) | made_of


def hash_prompts(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256("\n".join(prompt.problem or prompt.text for prompt in prompts).encode())
    own = [(prompt.guidance_scale, prompt.negative_prompt, prompt.seed) for prompt in prompts]
    if any(value is not None for values in own for value in values):
        digest.update(b"\0" + json.dumps(own).encode())
    return digest.hexdigest()[:12]


def _difference(out: Folder, prompts: Sequence[Prompt], count: int | None) -> str:
    """The first row that a finished shard has otherwise; else the number of rows; else where to look."""
    last = -1
    done = [path.name.replace("_stats.json", ".parquet") for path in shards.done_stats(out)]
    for table in read_all([out / name for name in done]):
        for row in pq.read_table(io.BytesIO(table), columns=["prompt_id", "prompt"]).to_pylist():
            last = max(last, row["prompt_id"])
            if last >= len(prompts):
                return f"it had a row {last}, {_short(row['prompt'])}, and has {len(prompts)} rows now"
            now = prompts[row["prompt_id"]].text
            if now != row["prompt"]:
                return f"row {row['prompt_id']} was {_short(row['prompt'])}, is {_short(now)}"
    if count is not None and count != len(prompts):
        return f"it had {count} rows, has {len(prompts)}"
    return f"a row after {last}, the last one painted, or what a row says besides its text has changed"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
