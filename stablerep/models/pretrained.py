"""Models of timm with the weights it knows: by name (`resnet50.a1_in1k`) or of the hub (`hf-hub:owner/name`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from stablerep.config import UserError, check_choice
from stablerep.hub import why_offline

HUB = ("hf-hub:", "hf_hub:")


def check_arch(arch: str, flag: str = "--arch") -> None:
    """Raise a UserError that suggests the nearest unless timm has this model, and weights of its tag if it has one."""
    import timm

    name, _, tag = arch.partition(".")
    check_choice(flag, name, timm.list_models())
    if tag:
        tagged = [known.partition(".")[2] for known in timm.list_models(f"{name}.*", pretrained=True)]
        check_choice(f"{flag} {arch}: tag".strip(), tag, tagged)


def full_name(arch: str) -> str:
    """The name with the tag of the weights that timm takes for it: resnet50 is resnet50.a1_in1k."""
    import timm

    about = timm.models.get_pretrained_cfg(arch)
    return f"{about.architecture}.{about.tag}" if about.tag else arch


def create_pretrained(name: str) -> nn.Module:
    """A timm model without classifier, with its weights from the cache or fetched.

    Raises:
        UserError: there are no such weights, or they cannot be had.
    """
    import timm

    if not name.startswith(HUB):
        check_arch(name, flag="")
        if not timm.models.get_pretrained_cfg(name).has_weights:
            raise UserError(f"{name}: timm has no weights of it; `untrained:{name}` measures random ones")
        name = full_name(name)
    try:
        with _offline_unless_reachable() as why_not:
            return timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # the hub client's errors are OSErrors
        if why_not:
            raise UserError(_mend(name, why_not)) from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: its weights cannot be had: {reason}") from error


def _mend(name: str, why_not: str) -> str:
    import timm
    from huggingface_hub import constants

    hub_name = name.partition(":")[2] if name.startswith(HUB) else timm.models.get_pretrained_cfg(name).hf_hub_id
    fetch = f"`hf download {hub_name}` where there is a network, and copy" if hub_name else "copy"
    return (
        f"{name}: its weights are not in {constants.HF_HUB_CACHE}, and the hub cannot be reached ({why_not}); "
        f"{fetch} that folder here, "
        "or give the file: MODEL.safetensors with --arch"
    )


@contextlib.contextmanager
def _offline_unless_reachable() -> Iterator[str | None]:
    """The hub's client without its network where that is not there: what is in the cache is then taken at once.

    Yields why there is no network; None where there is.
    """
    from huggingface_hub import constants

    why_not, before = why_offline(), constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or why_not is not None
    try:
        yield why_not
    finally:
        constants.HF_HUB_OFFLINE = before
