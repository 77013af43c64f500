"""The identity of a run: what its bytes follow from, and whether a folder may be begun or gone on with."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import pyarrow.parquet as pq

from stablerep import shards
from stablerep.config import UserError, to_dict
from stablerep.generate import scorers
from stablerep.generate.config import SWEEP_PREFIX, GenerateConfig
from stablerep.prompts import Prompt, without_labels
from stablerep.run_folder import refuse_other_run
from stablerep.storage import Folder, read_all


def resume_choices(config: GenerateConfig) -> GenerateConfig:
    """With `auto` the engine and the JPEG encoder that a folder was begun with, if it was."""
    if (dataset := shards.read_dataset(config.folder)) is None:
        return config
    recorded = {"jpeg_encoder": "pil"} | dataset["config"]
    chosen = {name: recorded[name] for name in ("engine", "jpeg_encoder") if getattr(config, name) == "auto"}
    return dataclasses.replace(config, **chosen)


def resume_prompts(out: Folder, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts without their labels where a folder was begun by a version that did not read those, to go on so."""
    if not any(prompt.label for prompt in prompts) or (dataset := shards.read_dataset(out)) is None:
        return prompts
    unlabelled = without_labels(prompts)
    return unlabelled if dataset["config"].get("prompts") == hash_prompts(unlabelled) else prompts


def origin_of(config: GenerateConfig) -> dict[str, str] | None:
    """What samples say of their origin, as the folder was begun; None if by a version whose samples did not say it.

    So the shards of a folder are the same bytes whichever version, and whatever path to the model, went on with it.
    """
    if (dataset := shards.read_dataset(config.folder)) is not None:
        return dataset["run"].get("origin")
    origin = {"model": _model_name(config.model), "stablerep": version("stablerep")}
    if (sample := shards.first_sample(config.folder)) is None:
        return origin
    return {name: sample[name] for name in origin} if origin.keys() <= sample.keys() else None


def _model_name(model: str) -> str:
    """A hub name, or a folder's own without the path to it: that is a machine's."""
    path = PurePath(model)
    return str(path) if len(path.parts) <= 2 and not path.is_absolute() else path.name


def begin_or_resume(
    config: GenerateConfig, prompts: Sequence[Prompt], engine: str, weights_hash: str, origin: dict[str, str] | None
) -> None:
    """Write dataset.json, or see that the one there is this run's.

    Raises:
        UserError: the folder holds another run, or the same one with other prompts, and which row differs.
    """
    identity = check_folder(config, prompts, engine, weights_hash)
    # Where the folder lies and who paints into it is not the run's, but the call's.
    flags = {name: value for name, value in to_dict(config).items() if name not in ("out", "staging", "ray", "gpus")}
    about = {"num_prompts": len(prompts), "flags": flags} | ({"origin": origin} if origin else {})
    shards.start_dataset(config.folder, identity, about)


def check_folder(config: GenerateConfig, prompts: Sequence[Prompt], engine: str, weights_hash: str) -> dict[str, Any]:
    """The run's identity, after a look whether --out holds the same run, if any. Writes nothing.

    Raises:
        UserError: as begin_or_resume.
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


def check_sweep_folder(config: GenerateConfig, prompts: Sequence[Prompt], weights_hash: str) -> None:
    """Refuse, before anything is painted, a folder that is not this sweep's. Scales may be added later.

    Raises:
        UserError: one run's shards, another sweep's, or files that are no run's.
    """
    out = config.folder
    own = ("guidance_scale", "engine", "jpeg_encoder")  # each run's; what `auto` chose is in each dataset.json

    def shared(entry: Folder) -> dict[str, Any]:
        identity = identity_of(config, resume_prompts(entry, prompts), weights_hash)
        return {name: value for name, value in identity.items() if name not in own}

    if (out / "dataset.json").exists():
        raise UserError(f"--out {out} holds one run; choose another --out for several values of --guidance-scale")
    if not out.exists():
        return
    entries: list[Folder] = sorted(out.iterdir(), key=str)
    for entry in entries:
        if not entry.name.startswith(SWEEP_PREFIX) or not entry.is_dir():
            raise UserError(f"--out {out} holds files that are no run of ours ({entry.name}); choose an empty folder")
        path = entry / "dataset.json"
        if path.exists():
            earlier = _read_config(path)
            wanted = shared(entry)
            refuse_other_run(entry, {name: earlier[name] for name in wanted if name in earlier}, wanted)


def identity_of(config: GenerateConfig, prompts: Sequence[Prompt], weights_hash: str) -> dict[str, Any]:
    """What the bytes of a run's shards follow from, but for an engine that `auto` chooses."""
    inputs = {"prompts": hash_prompts(prompts), "model": weights_hash}
    return config.picture_fields() | scorers.identity(config) | inputs


def hash_prompts(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256("\n".join(prompt.problem or prompt.text for prompt in prompts).encode())
    own = [(prompt.guidance_scale, prompt.negative_prompt, prompt.seed) for prompt in prompts]
    if any(value is not None for values in own for value in values):
        digest.update(b"\0" + json.dumps(own).encode())
    if any(prompt.label for prompt in prompts):
        digest.update(b"\0labels" + json.dumps([prompt.label for prompt in prompts]).encode())
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


def _read_config(path: Folder) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())["config"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run the same command again") from error


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
