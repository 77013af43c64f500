"""Zero-shot: the class whose texts are nearest, for encoders that were trained with a text tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from stablerep.config import UserError
from stablerep.evaluate.scores import Answer
from stablerep.models.text_tower import FOLDER, load_text_tower

TEMPLATES = (
    "a photo of a {}", "a photo of the {}", "a close-up photo of a {}", "a bright photo of a {}",
    "a dark photo of a {}", "a photo of a small {}", "a photo of a large {}",
)  # fmt: skip
TEXTS_AT_ONCE = 256


def read_templates(path: Path | None) -> tuple[str, ...]:
    """A template a line, {} in the place of the class.

    Raises:
        UserError: it cannot be read, is empty, or a line has no {}.
    """
    if path is None:
        return TEMPLATES
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--templates {path} cannot be read: {error}") from error
    if not lines:
        raise UserError(f"--templates {path} is empty; write one template a line, as: a photo of a {{}}")
    if without := [line for line in lines if "{}" not in line]:
        raise UserError(f"--templates {path}: {without[0]!r} has no {{}} in the place of the class")
    return lines


def exported_folder(checkpoint: str) -> Path:
    """The folder of an encoder that has a text tower.

    Raises:
        UserError: the checkpoint has none.
    """
    path = Path(checkpoint).expanduser()
    folder = path if path.is_dir() else path.parent
    for place in (folder / "exported", folder):
        if (place / FOLDER).is_dir():
            return place
    raise UserError(
        f"--protocols zero-shot: --checkpoint {checkpoint} has no text tower; train one with --objective "
        "stablerep+ or clip"
    )


@torch.no_grad()
def name_by_text(
    test_x: Tensor,  # [M, D]
    class_names: Sequence[str],
    exported: Path,
    templates: Sequence[str],
) -> Answer:
    """The class of each photo by the cosine to the mean of its class's texts (Radford et al. 2021)."""
    tower, projection, scale = load_text_tower(exported)
    texts = [template.replace("{}", name.replace("_", " ")) for name in class_names for template in templates]
    parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
    rows = torch.cat([F.normalize(tower(tower.tokenizer(part))) for part in parts])
    classes = F.normalize(rows.view(len(class_names), len(templates), -1).mean(1)).to(test_x.device)
    images = F.normalize(test_x.float() @ projection.T.to(test_x.device).float())
    return Answer.of_scores(scale.to(test_x.device).float() * (images @ classes.T))
