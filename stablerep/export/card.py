"""A model card: what the files of a run say of how its encoder came to be, and what only its owner can say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from stablerep.models import InputTransform, architecture_of

FILL_IN = "TO BE FILLED IN"
# Of a run's config: what a reader would have to know to do it again.
TRAINED_WITH = (
    "objective", "views_per_prompt", "batch_size", "steps", "epochs", "base_lr", "weight_decay", "warmup",
    "temperature", "head_hidden", "head_out", "image_size", "min_scale", "precision", "seed",
)  # fmt: skip
RESULTS = ("loss", "knn_top1", "effective_rank")  # of metrics.jsonl
BEST = "exported_best"
PAINTED_WITH = (
    "model", "scheduler", "num_inference_steps", "guidance_scale", "negative_prompt", "num_images_per_prompt", "lora",
)  # fmt: skip


def model_card(checkpoint: str, encoder: nn.Module, transform: InputTransform) -> str:
    """README.md of a folder for the hub. Paths of this machine are not in it, names of files are."""
    run = _run_of(Path(checkpoint))
    config = _read(run / "config.yaml") if run else {}
    if config.get("steps") == 0:  # then as epochs says
        del config["steps"]
    arch, millions = architecture_of(encoder), sum(weight.numel() for weight in encoder.parameters()) / 1e6
    head = {"library_name": "timm", "pipeline_tag": "image-feature-extraction", "tags": ["timm", "stablerep"]}
    lines = [
        "---",
        f"license: other  # {FILL_IN}: yours to choose, within what the data and the generator allow",
        *yaml.safe_dump(head, sort_keys=False).splitlines(),
        "---",
        f"# {arch}, trained by stablerep",
        "",
        f"A {arch} ({millions:.1f} M weights, {encoder.num_features} features a picture), without classifier.",
        "",
        "    encoder = timm.create_model('hf-hub:OWNER/NAME', pretrained=True).eval()",
        "    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder))",
        "",
        f"Pictures are seen at {transform.image_size} x {transform.image_size}, mean {list(transform.mean)}, deviation "
        f"{list(transform.std)}.",
        "",
        "## Training data",
        *(_data_lines(run, config) if run else [f"- {FILL_IN} (these weights were no run of stablerep-train)"]),
        "",
        "## Training",
        *[f"- {name}: {config[name]}" for name in TRAINED_WITH if config.get(name) not in (None, "auto")],
        *(_results(run, is_best=BEST in Path(checkpoint).resolve().parts) if run else []),
        "",
        "## Licence",
        f"- of these weights: {FILL_IN}",
        f"- of the training pictures and prompts: {FILL_IN}",
        f"- of the generator that painted them, and what it allows of what is trained on its pictures: {FILL_IN}",
        "",
    ]
    return "\n".join(lines)


def _run_of(path: Path) -> Path | None:
    """The run that a checkpoint lies in: the folder itself, or the one around exported/ or a file in it."""
    places = [place for place in (path, *path.resolve().parents[:2]) if place.is_dir()]
    return next((place for place in places if (place / "config.yaml").is_file() and _is_run(place)), None)


def _is_run(folder: Path) -> bool:
    return {"data", "objective"} <= _read(folder / "config.yaml").keys()


def _read(path: Path) -> dict[str, Any]:
    return (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text())


def _data_lines(run: Path, config: dict[str, Any]) -> list[str]:
    noted = json.loads((run / "data.json").read_text()) if (run / "data.json").is_file() else []
    counts = {row["data"]: f": {row['pictures']:,} pictures, {row['groups']:,} prompts or photos" for row in noted}
    lines = []
    for data in config["data"]:
        folder = Path(data if Path(data).exists() else data.rpartition(":")[0])
        lines.append(f"- `{_name(data)}`{counts.get(data, '')}")
        if (folder / "dataset.json").is_file():
            lines += _painted(_read(folder / "dataset.json").get("run", {}))
    if config.get("online"):
        lines.append(f"- painted while training, by `{_name(config['online'])}`")
        if (run / "online.yaml").is_file():
            lines += _painted({"flags": _read(run / "online.yaml")})
    initial = run / "initialized_from.yaml"
    if initial.is_file():
        lines.append(f"- training began with the weights of `{_name(str(_read(initial)['initialized_from']))}`")
    return lines


def _painted(about: dict[str, Any]) -> list[str]:
    """What a dataset of stablerep-gen says of its generator and its prompts."""
    flags = about.get("flags", {})
    lines = [f"    - {name}: {_name(str(flags[name]))}" for name in PAINTED_WITH if flags.get(name)]
    count = f"{about['num_prompts']:,} prompts of " if "num_prompts" in about else ""
    return [*lines, *([f"    - prompts: {count}`{_name(str(flags['prompts']))}`"] if flags.get("prompts") else [])]


def _results(run: Path, *, is_best: bool) -> list[str]:
    """The last values that the run wrote; of exported_best/ those up to its step."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    found = [json.loads(line) for line in lines]
    most = _read(run / "watch.json")["step"] if is_best and (run / "watch.json").is_file() else float("inf")
    last = {name: value for line in found if line["step"] <= most for name, value in line.items()}
    shown = [f"- {name}: {last[name]:.4g}" for name in RESULTS if last.get(name) is not None]
    return ["", f"After {last['step']:,} steps:", *shown] if shown else []


def _name(text: str) -> str:
    """A name of the hub or of a flag as it is; of a path on this machine the last part."""
    return Path(text).name if text.startswith(("/", "~", ".")) else text
