"""What lies in a model's folder, local or on the hub: its kind, its variant of weights. Only safetensors."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download

from stablerep import hub
from stablerep.config import UserError

INDEX = "model_index.json"
OPENS = "Stable Diffusion 1.x/2.x, SDXL, their Turbo and LCM models"
LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}  # the last is an old name for a module of the first
VARIANT = "fp16"  # of a model that has no other weights
WEIGHTS = re.compile(rf"(?P<component>.+)/[^/]+?(?P<variant>\.{VARIANT})?(-\d+-of-\d+)?\.safetensors")


def find_folder(model: str) -> Path:
    """The folder of a path, or of a hub name, whose files are fetched if they are not there yet.

    Raises:
        UserError: neither, not to be had, or of a kind that does not open, which is seen before weights are fetched.
    """
    if folder := hub.local_folder("--model", model):
        return folder
    index = hub.fetch("--model", model, partial(hf_hub_download, model, INDEX))
    check_kind(model, json.loads(Path(index).read_text()))
    return Path(hub.fetch("--model", model, partial(_download, model)))


def _download(model: str, local_files_only: bool) -> str:
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": local_files_only}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers' own, for its own call
        try:
            return DiffusionPipeline.download(model, **options)
        except OSError as error:
            if "safetensors" not in str(error):
                raise
        return DiffusionPipeline.download(model, variant=VARIANT, **options)


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json.

    Raises:
        OSError, ValueError: it is missing, or no JSON object.
    """
    index = json.loads((folder / INDEX).read_text())
    if not isinstance(index, dict):
        raise ValueError(f"{INDEX} is no object")
    return index


def check_kind(model: str, index: dict[str, Any]) -> None:
    """Look at the components that model_index.json names.

    Raises:
        UserError: other components than ours, or a scheduler of another family.
    """
    components = {name: of for name, of in index.items() if isinstance(of, list) and len(of) == 2 and of[0] is not None}
    classes = {name: of[1] for name, of in components.items()}
    kind = index.get("_class_name")
    wanted = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    if is_xl(index):
        wanted["text_encoder_2"] = "CLIPTextModelWithProjection"
    if not isinstance(kind, str) or any(classes.get(name) != name_of for name, name_of in wanted.items()):
        raise UserError(f"--model {model} is a {kind}; what opens is {OPENS}")
    if foreign := {of[0] for of in components.values()} - LIBRARIES:
        raise UserError(f"--model {model} brings its own code ({', '.join(map(str, foreign))}), which is not run")
    scheduler = str(classes.get("scheduler"))
    if scheduler.startswith(("EDM", "FlowMatch")):
        raise UserError(f"--model {model} was trained for {scheduler}, another kind of noise than {OPENS}")


def is_xl(index: dict[str, Any]) -> bool:
    """Whether a pipeline has the second text encoder of SDXL."""
    return (index.get("text_encoder_2") or [None])[-1] is not None


def variant_of(folder: Path) -> str | None:
    """fp16 if a component has weights of that name only, else None."""
    found = _weights(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))
    return VARIANT if any(variants == {True} for variants in found.values()) else None


def _weights(names: Iterable[str]) -> dict[str, set[bool]]:
    """By component, whether its files are of the variant."""
    found: dict[str, set[bool]] = {}
    for name in names:
        if match := WEIGHTS.fullmatch(name):
            found.setdefault(match["component"], set()).add(match["variant"] is not None)
    return found
