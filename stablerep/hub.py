"""Models of transformers, by folder or hub name: safetensors only, no code from outside, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from stablerep.config import UserError

# What a model is made of; pickles (.bin, .pt) and code are not fetched.
FILES = (".safetensors", ".json", ".txt", ".model", ".jinja")


def model_folder(flag: str, model: str) -> Path:
    """The folder itself, or that of a hub name (owner/name) after fetching what is missing in the hub's cache.

    Raises:
        UserError: neither, or the hub does not give it.
    """
    if Path(model).is_dir():
        return Path(model)
    if Path(model).exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(f"{flag} {model} is neither a folder nor a hub name (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=[f"*{ending}" for ending in FILES]))
    except Exception as error:  # the hub client raises a dozen kinds; each means that the model is not to be had
        raise UserError(f"{flag} {model} cannot be fetched from the hub: {_line(error)}") from error


def load(flag: str, kind: Any, folder: Path, **options: Any) -> Any:
    """kind.from_pretrained(folder): a tokenizer, image processor or config, without the network.

    Raises:
        UserError: nothing of that kind there.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # its bars would break ours
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{flag} {folder} cannot be opened ({kind.__name__}): {_line(error)}") from error


def load_model(flag: str, kind: Any, folder: Path, **options: Any) -> Any:
    """The same for a model of safetensors: frozen, in evaluation mode, every weight from the folder.

    Raises:
        UserError: as load; no safetensors; or weights of another kind of model.
    """
    model, about = load(flag, kind, folder, use_safetensors=True, output_loading_info=True, **options)
    if missing := sorted(about["missing_keys"]):  # transformers fills them with random numbers
        raise UserError(
            f"{flag} {folder} is another kind of model: {len(missing)} weights of a {type(model).__name__} are "
            f"missing, first {missing[0]}"
        )
    return model.eval().requires_grad_(False)


def hash_folder(folder: Path, endings: Collection[str] = FILES) -> str:
    """Twelve hex digits over the names and bytes of a folder's files with these endings."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in endings:
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()[:12]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
