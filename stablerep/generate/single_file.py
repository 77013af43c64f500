"""A whole model in one file, as web UIs keep them: weights under CompVis' (SD 1.x, 2.x) or SGM's names (SDXL).

Such a file has neither configs nor tokenizer: those are a folder's (--model-config), or the hub's for its kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_DEFAULT_PIPELINE_PATHS,
    SingleFileComponentError,
    infer_diffusers_model_type,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from stablerep import hub
from stablerep.config import UserError
from stablerep.generate.model_files import OPENS, check_kind, is_xl, read_index

ENDING = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
CONFIGS = (".json", ".txt")  # the files of a pipeline's folder besides its weights
FLAG = "--model-config"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {  # which of these stand for a part is the part's own: the first that a file has
    "text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
NO_WEIGHTS = ("position_ids", "logit_scale")  # that the files carry along
INFERRED = ("v1", "xl_base")  # not v2: a file does not say whether it predicts noise or velocity


def is_single_file(model: str) -> bool:
    """Whether --model names a file of weights, there or not."""
    path = Path(model).expanduser()
    return path.suffix.lower() in (ENDING, *PICKLES) and not path.is_dir()


def open_single_file(
    model: str, config: str | None, dtype: torch.dtype
) -> tuple[StableDiffusionPipeline | StableDiffusionXLPipeline, str]:
    """The pipeline of a file and its weights' hash; config is a folder or hub name with the configs and the tokenizer.

    Raises:
        UserError: no such file, a pickle, no whole model, or no config of its kind.
    """
    path = Path(model).expanduser()
    if not path.is_file():
        raise UserError(f"--model {model}: no such file")
    if path.suffix.lower() in PICKLES:
        raise UserError(f"--model {model} is a pickle, which could run code; convert it: {_conversion(path)}")
    try:
        weights = load_file(path)  # mapped, not read
    except (SafetensorError, OSError) as error:
        raise UserError(f"--model {model} cannot be read: {' '.join(str(error).split())}") from error
    if not all(any(name.startswith(prefix) for name in weights) for prefix in (UNET, VAE)):
        raise UserError(
            f"--model {model} is no whole model: it has no weights named {UNET}* and {VAE}*; a LoRA goes to --lora, "
            "the weights of one part belong into their pipeline's folder"
        )
    folder = _config_folder(model, config, weights)
    try:
        index = read_index(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{FLAG} {folder} is no pipeline's folder: {' '.join(str(error).split())}") from error
    check_kind(str(folder), index)
    xl = is_xl(index)
    for part in ("tokenizer", "text_encoder", "unet", "vae", "scheduler", *(("tokenizer_2", "text_encoder_2") * xl)):
        if not any((folder / part).glob("*.json")):
            raise UserError(f"{FLAG} {folder} has no {part}/ with its files; fetch those (only weights are not needed)")
    options: dict[str, Any] = {"config": str(folder), "local_files_only": True}
    parts: dict[str, Any] = {"feature_extractor": None}
    if not xl:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    else:
        parts |= {"image_encoder": None, "add_watermarker": False}
    try:
        if xl and dtype == torch.float16:  # as in a folder: in half precision the VAE of SDXL overflows
            vae = AutoencoderKL.from_single_file(str(path), subfolder="vae", torch_dtype=torch.float32, **options)
            parts["vae"] = vae if vae.config.force_upcast else vae.to(dtype)
        kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
        opened = kind.from_single_file(str(path), torch_dtype=dtype, **options, **parts)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, SingleFileComponentError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--model {model} and {FLAG} {folder} do not go together: {reason}") from error
    _check_whole(model, folder, weights, opened, xl)
    digest = hashlib.sha256(hub.hash_folder(folder, CONFIGS).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return opened, digest.hexdigest()[:12]


def _config_folder(model: str, config: str | None, weights: Mapping[str, Any]) -> Path:
    if config is not None:
        return hub.local_folder(FLAG, config) or hub.snapshot(FLAG, config, CONFIGS)
    kind = infer_diffusers_model_type(weights)
    need = f"--model {model} has neither configs nor tokenizer; add {FLAG} FOLDER, a pipeline's folder of its kind"
    if kind not in INFERRED:
        raise UserError(f"{need} ({OPENS})")
    name = DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    try:
        return hub.snapshot(FLAG, name, CONFIGS)
    except UserError as error:
        raise UserError(f"{need} (weights need not be in it); its default is not to be had: {error}") from error


def _check_whole(model: str, folder: Path, weights: Collection[str], opened: Any, xl: bool) -> None:
    """diffusers fills what a file lacks with random numbers; here each weight of a part must have come from one.

    Raises:
        UserError: there are fewer in the file.
    """
    prefixes = {"unet": (UNET,), "vae": (VAE,), "text_encoder": TEXT["text_encoder"]}
    if xl:
        prefixes["text_encoder_2"] = TEXT["text_encoder_2"]
    for part, spellings in prefixes.items():
        names = next((own for prefix in spellings if (own := [w for w in weights if w.startswith(prefix)])), [])
        # OpenCLIP keeps query, key and value in one
        have = sum(3 if ".in_proj_" in name else 1 for name in names if not name.endswith(NO_WEIGHTS))
        want = len(getattr(opened, part).state_dict())
        if have < want:
            raise UserError(
                f"--model {model} has {have} of the {want} weights of a {part} as {folder} describes it; the file is "
                f"not whole, or {FLAG} is of another model"
            )


def _conversion(path: Path) -> str:
    """A command that makes safetensors of a pickle, running none of its code."""
    return (
        "python -c \"import torch, safetensors.torch as s; d = torch.load('"
        f"{path}', weights_only=True); s.save_file({{k: v.clone() for k, v in d.get('state_dict', d).items() if "
        f"torch.is_tensor(v)}}, '{path.with_suffix(ENDING)}')\""
    )
