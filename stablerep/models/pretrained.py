"""Models of timm with the weights it knows: by name (`resnet50.a1_in1k`) or of the hub (`hf-hub:owner/name`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from stablerep.config import UserError, check_choice

HUB = ("hf-hub:", "hf_hub:")
SECONDS = 3.0  # to find that the hub cannot be reached; its client tries for 23 s, once a file


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
            raise UserError(_mend(name, why_not[0])) from error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: its weights cannot be had: {reason}") from error


def _mend(name: str, why_not: str) -> str:
    import timm
    from huggingface_hub import constants

    hub_name = name.partition(":")[2] if name.startswith(HUB) else timm.models.get_pretrained_cfg(name).hf_hub_id
    fetch = f"`hf download {hub_name}` where there is a network, and copy" if hub_name else "copy"
    return (
        f"{name}: its weights are not in {constants.HF_HUB_CACHE}, and {why_not}; {fetch} that folder here, "
        "or give the file: MODEL.safetensors with --arch"
    )


@contextlib.contextmanager
def _offline_unless_reachable() -> Iterator[list[str]]:
    """The hub's client without its network where that is not there: what is in the cache is then taken at once.

    Yields a list that says why there is no network; empty where there is.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield ["HF_HUB_OFFLINE is set"]
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever HTTP client the hub's release has; each means no answer
        why_not = f"{constants.ENDPOINT} cannot be reached ({' '.join(str(error).split())[:80]})"
        constants.HF_HUB_OFFLINE = True
        try:
            yield [why_not]
        finally:
            constants.HF_HUB_OFFLINE = False
    else:
        yield []
