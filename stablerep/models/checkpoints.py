"""Encoders that people bring: our own runs and exports, timm's models by name or folder, files of weights.

A file of weights is a state dict, or a training checkpoint of timm, torch or the reference code (StableRep, SynCLR)
around one, in safetensors or as torch.save writes it. Nothing but tensors and plain values is ever unpickled.
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stablerep.config import UserError, either, nearest
from stablerep.models.encoder import CONFIG, WEIGHTS, check_forward
from stablerep.models.input_transform import InputTransform
from stablerep.models.pretrained import HUB, check_arch, create_pretrained

STATES = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
)  # of training checkpoints; timm takes them in this order
TORCH_WEIGHTS = "pytorch_model.bin"
# What the reference code measures its encoders with (its main_linear.py), whatever timm says of their architecture.
REFERENCE_PREFIX, REFERENCE_CROP = "visual.", 0.875

log = logging.getLogger("stablerep.models")


@dataclass(frozen=True)
class Weights:
    """What a file holds."""

    tensors: dict[str, Tensor]
    arch: str | None  # of timm, where the file says


def load_encoder(path_or_name: str | Path, arch: str | None = None) -> tuple[nn.Module, InputTransform]:
    """Open an encoder and the transform its pictures need. It comes in eval mode, on the CPU, without classifier.

    Args:
        path_or_name: a run folder of stablerep-train, an exported folder or a file in one; a folder of timm (with its
            config.json); a file of weights; a name of timm or hf-hub:owner/name, with pretrained weights.
        arch: the timm model that a file of weights is of, where the file does not say.

    Raises:
        UserError: no encoder there, weights that cannot be had, or weights of another model.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file() and path.name not in (WEIGHTS, CONFIG):
        encoder, transform = _open_file(path, arch)
    elif path.is_dir() or (path.is_file() and (path.parent / CONFIG).is_file()):
        encoder, transform = _open_folder(path if path.is_dir() else path.parent)
    elif path.is_file():
        encoder, transform = _open_file(path, arch)
    else:
        encoder, transform = _open_name(str(path_or_name))
    known = architecture_of(encoder)
    if arch and known != arch.partition(".")[0]:
        raise UserError(f"{path_or_name} is a {known}, not --arch {arch}; give --arch {known}")
    return encoder.eval(), transform


def architecture_of(encoder: nn.Module) -> str:
    """timm's name of the model, without a tag."""
    about: Any = encoder.pretrained_cfg
    return about["architecture"]


def load_weights(encoder: nn.Module, tensors: Mapping[str, Tensor], source: object) -> str:
    """Put weights into an encoder without classifier, all of them; returns the prefix they had in `tensors`.

    What else `tensors` holds, a classifier or a head under another prefix, is left out, and logged. Names and position
    embeddings that do not fit go through timm's own filter of that family first.

    Raises:
        UserError: weights are missing, left over or of another shape; names the first.
    """
    expected = encoder.state_dict()
    prefix = _prefix_of(tensors, expected, source)
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    heads = _classifiers(encoder)
    dropped = {name for name in inside if name not in expected and name.startswith(heads)}
    left_out = [name for name in tensors if not name.startswith(prefix) or name.removeprefix(prefix) in dropped]
    inside = {name: value for name, value in inside.items() if name not in dropped}
    if _misfit(inside, expected):
        inside = _renamed(inside, encoder)
    if misfit := _misfit(inside, expected):
        raise UserError(
            f"{source} does not hold the weights of a {architecture_of(encoder)}: {misfit}; is it of another --arch?"
        )
    before = tensors.get(f"{prefix}pos_embed")
    if before is not None and before.shape != expected["pos_embed"].shape:
        log.warning("%s: its position embeddings are resized to those of %s", source, architecture_of(encoder))
    encoder.load_state_dict(inside, strict=False)
    if left_out:
        counts = Counter(name.removeprefix("module.").split(".")[0] for name in left_out)
        log.info("%s: left out %s", source, ", ".join(f"{name} ({count})" for name, count in counts.items()))
    return prefix


def _classifiers(encoder: nn.Module) -> tuple[str, ...]:
    """How the names of its classifier begin, where it has one."""
    import timm

    about: Any = encoder.pretrained_cfg
    named = about.get("classifier") or timm.models.get_pretrained_cfg(architecture_of(encoder)).classifier or ()
    return tuple(f"{name}." for name in {"head", *((named,) if isinstance(named, str) else named)})


def _renamed(tensors: dict[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """As timm's filter of the model's family gives them: older and other people's names, other sizes of pictures."""
    name_filter = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", None)
    if name_filter is None:
        return tensors
    try:
        return name_filter(dict(tensors), encoder)
    except (
        AttributeError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ):  # no weights of its family
        return tensors


def _misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first of what is missing, left over or of another shape."""
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # files of old torch lack them
    missing, surplus = sorted(expected.keys() - tensors.keys() - counters), sorted(tensors.keys() - expected.keys())
    shapes = [name for name in tensors if name in expected and tensors[name].shape != expected[name].shape]
    found = [f"{missing[0]} is missing ({len(missing)} such)"] if missing else []
    found += [f"{surplus[0]} is none of its names ({len(surplus)} such)"] if surplus else []
    if shapes and not found:
        theirs, ours = tuple(tensors[shapes[0]].shape), tuple(expected[shapes[0]].shape)
        found.append(f"{shapes[0]} has the shape {theirs}, not {ours} ({len(shapes)} such)")
    return " and ".join(found) or None


def _open_name(name: str) -> tuple[nn.Module, InputTransform]:
    import timm
    from timm.data import resolve_model_data_config

    if not name.startswith(HUB):
        if "/" in name or Path(name).suffix in (".pth", ".pt", ".safetensors"):
            raise UserError(f"{name} does not exist")
        known = timm.list_models()
        if name.partition(".")[0] not in known:
            near = nearest(name.partition(".")[0], known)
            hint = f"; did you mean {either(near)}?" if near else "; give a path, or a name of timm"
            raise UserError(f"{name} is no file, no folder and no model of timm{hint}")
    encoder = create_pretrained(name)
    return encoder, _with_source(name, lambda: InputTransform.from_timm(resolve_model_data_config(encoder)))


def _open_folder(path: Path) -> tuple[nn.Module, InputTransform]:
    import timm
    from timm.data import resolve_model_data_config

    folder = path / "exported" if (path / "exported").is_dir() else path
    if not (folder / CONFIG).is_file():
        if (folder / "checkpoints").is_dir():
            raise UserError(f"{folder} holds a run that has not ended; give stablerep-train the same --out to go on")
        raise UserError(f"{path} holds no trained encoder (no exported/{CONFIG}); give the --out of stablerep-train")
    file = folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder / TORCH_WEIGHTS
    try:
        encoder = timm.create_model(f"local-dir:{folder}", pretrained=False, num_classes=0)
        load_weights(encoder, _read(file).tensors, file)
        data_config = resolve_model_data_config(encoder)
        check_forward(encoder, data_config["input_size"][-1])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UserError) as error:
        reason = " ".join(str(error).split())[:200]
        mend = "delete it and run stablerep-train again, or bring whole files"
        raise UserError(f"{folder} is damaged ({reason}); {mend}") from error
    transform = _with_source(folder, lambda: InputTransform.from_timm(data_config))
    bit_range = json.loads((folder / CONFIG).read_text()).get("bit_range")  # of our own exports
    return encoder, replace(transform, bit_range=tuple(bit_range) if bit_range else None)


def _open_file(path: Path, arch: str | None) -> tuple[nn.Module, InputTransform]:
    import timm
    from timm.data import resolve_model_data_config

    weights = _read(path)
    beside = _arch_beside(path)
    known = beside or weights.arch or arch
    if known is None:
        raise UserError(f"{path} does not say of which model its weights are; add --arch, the name of timm's model")
    check_arch(known, flag=f"{path}: --arch")
    name = f"local-dir:{path.parent}" if beside else known
    encoder = timm.create_model(name, pretrained=False, num_classes=0)
    prefix = load_weights(encoder, weights.tensors, path)
    transform = _with_source(path, lambda: InputTransform.from_timm(resolve_model_data_config(encoder)))
    if prefix.endswith(REFERENCE_PREFIX) and not beside:
        transform = InputTransform(transform.image_size, crop_pct=REFERENCE_CROP, crop_mode="center")
    try:
        check_forward(encoder, transform.image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{path} cannot be used: {' '.join(str(error).split())[:200]}") from error
    log.info("%s: a %s at %d pixels", path, architecture_of(encoder), transform.image_size)
    return encoder, transform


def _arch_beside(path: Path) -> str | None:
    """What a config.json of timm in the same folder says."""
    try:
        about = json.loads((path.parent / CONFIG).read_text())
    except (OSError, ValueError):  # none, or not one of timm's: then the file or --arch has to say
        return None
    return about.get("architecture") if isinstance(about, dict) else None


def _read(path: Path) -> Weights:
    """The tensors of a file, and what it says of their architecture.

    Raises:
        UserError: it cannot be read, or holds no weights, or other objects beside them.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts keep their flags in one
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if blocked := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} holds other objects beside weights ({blocked[1]}), which could run code when opened; if you "
                "trust it, save its weights alone: torch.save({'state_dict': ...})"
            ) from error
        raise UserError(f"{path} is no file of weights (torch.save or safetensors)") from error
    except (KeyError, EOFError, ValueError) as error:  # what unpickling makes of other files
        raise UserError(f"{path} is no file of weights (torch.save or safetensors)") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:150]})") from error
    state = held
    if isinstance(held, dict):
        found = next((name for name in STATES if isinstance(held.get(name), dict)), None)
        state = held[found] if found else held
        if found and found.endswith("ema"):
            log.info("%s: its averaged weights (%s) are taken", path, found)
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise UserError(f"{path} holds no weights; {' and '.join(STATES[2:])} are the names looked under")
    return Weights(tensors, _arch_of_checkpoint(held))


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:150]})") from error
    return Weights(tensors, _first_known([about.get("architecture"), about.get("arch")]))


def _arch_of_checkpoint(held: Mapping[str, Any]) -> str | None:
    """What timm's and torch's checkpoints hold as `arch`, and the flags of timm's and the reference code as `model`."""
    flags = held.get("args")
    model = getattr(flags, "model", None) if not isinstance(flags, dict) else flags.get("model")
    reference = [f"vit_{model}_patch16_224", f"{model}_224"] if isinstance(model, str) else []  # base, vit_base_patch16
    return _first_known([held.get("arch"), held.get("architecture"), model, *reference])


def _first_known(names: Iterable[Any]) -> str | None:
    import timm

    return next((name for name in names if isinstance(name, str) and timm.is_model(name.partition(".")[0])), None)


def _prefix_of(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: object) -> str:
    """What stands before the encoder's own names: `module.` of DDP, `visual.`, `encoder.`, `backbone.` and so on."""
    probe = max(expected, key=len)  # the name least likely to end another one
    candidates = {""} | {name.removesuffix(probe) for name in tensors if name.endswith(probe)}
    whole = {prefix: sum(f"{prefix}{name}" in tensors for name in expected) for prefix in candidates}
    best = max(whole.values())
    if best == 0:
        return ""  # names of another code base; the family's filter may know them
    first, *others = sorted(prefix for prefix, found in whole.items() if found == best)
    if others:
        names = ", ".join([first, *others])
        raise UserError(f"{source} holds several encoders ({names}); save the one you mean alone")
    return first


def _with_source(source: object, make: Any) -> InputTransform:
    try:
        return make()
    except UserError as error:
        raise UserError(f"{source} cannot be used: {error}") from error
