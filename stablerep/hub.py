"""Models of transformers, by folder or hub name: safetensors only, no code from outside, whole or not at all."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from stablerep.config import UserError

# What a model is made of; pickles (.bin, .pt) and code are not fetched.
FILES = (".safetensors", ".json", ".txt", ".model", ".jinja")
PATH = re.compile(r"[./~\\]|[A-Za-z]:[\\/]|.*\\")  # how paths begin, and hub names never
REACH_SECONDS = 3
PACKAGE = Path(__file__).parent
# In a wheel the folder lies in the package, in a source checkout with the script that trained it.
DEFAULT_GENERATOR_FOLDERS = (PACKAGE / "default_generator", PACKAGE.parent / "examples/fashion/pipeline")


def default_generator() -> Path:
    """The folder of the embedded Stable Diffusion pipeline (32x32 garments, 5.8 M weights)."""
    for folder in DEFAULT_GENERATOR_FOLDERS:
        if (folder / "model_index.json").exists():
            return folder
    raise UserError("default: the embedded generator's folder is missing from this installation; reinstall stablerep")


def local_folder(flag: str, model: str) -> Path | None:
    """The folder that a flag names, or None for a hub name (owner/name).

    Raises:
        UserError: neither; what is spelled as a path, or is there as a file, is no hub name.
    """
    model, path = str(model), Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{flag} {model} is a file; give the folder")
    if PATH.match(model) or model.count("/") > 1:
        raise UserError(f"{flag} {model}: no such folder")
    if model.count("/") != 1:
        raise UserError(f"{flag} {model}: no such folder, and no hub name (owner/name)")
    return None


def model_folder(flag: str, model: str) -> Path:
    """The folder itself, or that of a hub name (owner/name) after fetching what is missing in the hub's cache.

    Raises:
        UserError: neither, or the hub does not give it.
    """
    if folder := local_folder(flag, model):
        return folder
    return snapshot(flag, model, FILES)


def snapshot(flag: str, model: str, endings: Collection[str]) -> Path:
    """The folder of a hub name's files with these endings, fetched if they are not in the cache yet."""
    from huggingface_hub import snapshot_download

    patterns = [f"*{ending}" for ending in endings]
    return Path(fetch(flag, model, partial(snapshot_download, model, allow_patterns=patterns)))


def fetch(flag: str, model: str, get: Callable[..., Any]) -> Any:
    """get(local_files_only=...) of something of the hub: from its cache alone where the hub cannot be reached.

    Raises:
        UserError: it is not to be had, and why.
    """
    offline = why_offline()
    try:
        return get(local_files_only=bool(offline))
    except UserError:
        raise
    except Exception as error:  # the hub client raises a dozen kinds; each means that the model is not to be had
        if offline:
            raise UserError(
                f"{flag} {model} is no folder here nor in the hub's cache, and the hub cannot be reached ({offline}); "
                f"give a folder, or copy the cache of a machine where hf download {model} ran"
            ) from error
        raise UserError(f"{flag} {model} cannot be fetched from the hub: {_line(error)}") from error


def why_offline() -> str | None:
    """Why the hub cannot be reached; None if it can. Asked once a process: its client would retry for half a minute."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    return _why_unreachable(constants.ENDPOINT)


@cache
def _why_unreachable(endpoint: str) -> str | None:
    from huggingface_hub.utils import get_session

    answers: Queue[str | None] = Queue()

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=REACH_SECONDS)  # any answer will do
            answers.put(None)
        except Exception as error:  # no name, no route, no proxy: whatever it is, the message names it
            answers.put(_line(error) or type(error).__name__)

    # A thread of its own that nobody waits for: looking up a name knows no timeout.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=REACH_SECONDS + 1)
    except Empty:
        return f"no answer in {REACH_SECONDS + 1} s"


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
