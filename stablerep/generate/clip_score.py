"""CLIP score: how well a picture shows what its prompt says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stablerep import hub
from stablerep.config import UserError
from stablerep.generate.score_input import Prepare, dtype_on, open_prepare
from stablerep.generate.transfer import up

FLAG = "--clip-score-model"
KINDS = ("clip", "siglip")


@dataclass(frozen=True)
class ClipScore:
    """A CLIPModel or SiglipModel with its image processor and tokenizer."""

    model: Any
    prepare: Prepare
    tokenizer: Any

    @torch.inference_mode()
    def __call__(
        self,
        pixels: Tensor,  # [B, H, W, 3] uint8 on the model's device
        texts: Sequence[str],  # [B]
    ) -> Tensor:  # [B] float32, 0..100; NaN where the text is empty
        """100 x the cosine between picture and text, at least 0 (Hessel et al. 2021, in torchmetrics' scale).

        A text that is longer than the model takes is cut. Never waits for the device.
        """
        different = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        rows = torch.tensor([different[text] for text in texts])
        missing = torch.tensor([0.0 if text.strip() else torch.nan for text in texts])
        of_text = self._of_texts(list(different)).index_select(0, up(rows, pixels.device))
        pictures = self.prepare(pixels).to(self.model.dtype)
        of_picture = self.model.get_image_features(pixel_values=pictures).pooler_output
        cosine = F.cosine_similarity(of_picture.float(), of_text.float())
        return cosine.mul(100).clamp(min=0) + up(missing, pixels.device)

    def _of_texts(self, texts: list[str]) -> Tensor:
        ids = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).input_ids.to(self.model.device, non_blocking=True)
        # No mask: CLIP's text attends backwards from its end-of-text, SigLIP was trained without one. A mask would make
        # transformers ask the device whether it masks anything.
        return self.model.get_text_features(input_ids=ids).pooler_output


def open_clip_score(model: str, device: torch.device) -> ClipScore:
    """Open a folder of transformers or a hub name.

    Raises:
        UserError: nothing there, or another kind of model than CLIP or SigLIP.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = hub.model_folder(FLAG, model)
    kind = hub.load(FLAG, AutoConfig, folder).model_type
    if kind not in KINDS:
        raise UserError(f"{FLAG} {model} is a {kind} model; give one of {' or '.join(KINDS)}, text and pictures")
    return ClipScore(
        model=hub.load_model(FLAG, AutoModel, folder, dtype=dtype_on(device)).to(device),
        prepare=open_prepare(FLAG, folder),
        tokenizer=hub.load(FLAG, AutoTokenizer, folder),
    )
