"""What an adaptation came to: adapted.json for programs, a few lines for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stablerep import atomic
from stablerep.adapt.memorised import Memorised

RESULT = "adapted.json"  # written last: a run is done if it is there


@dataclass(frozen=True)
class AdaptSummary:
    """What is in the folder of a run that has ended."""

    out: Path
    weights: Path  # the LoRA's file or the pipeline's folder
    model: str
    full: bool
    photos: int  # trained on
    held_out: int
    steps: int  # taken
    best_step: int  # whose weights are kept
    first_loss: float  # of the photos held out, before
    best_loss: float
    psnr: float  # decibels, of what the VAE draws again
    memorised: Memorised
    seconds: float  # of the process that finished the run

    @property
    def improvement(self) -> float:
        return 1 - self.best_loss / self.first_loss

    def save(self) -> None:
        values: dict[str, Any] = {"version": 1} | asdict(self) | {"memorised": self.memorised.as_dict()}
        values |= {"out": str(self.out), "weights": str(self.weights.relative_to(self.out))}
        atomic.write(self.out / RESULT, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, out: Path) -> AdaptSummary:
        values = json.loads((out / RESULT).read_text())
        del values["version"], values["memorised"]["share"]
        values |= {"out": out, "weights": out / values["weights"], "memorised": Memorised(**values["memorised"])}
        return cls(**values)

    def __str__(self) -> str:
        helped = f"{self.improvement:.1%} lower" if self.best_step else "no lower: adapting did not help"
        model = "" if self.model == "default" else f" --model {self.model}"
        use = f"--model {self.weights}" if self.full else f"{model.lstrip()} --lora {self.out}:1".strip()
        return "\n".join(
            [
                f"loss of {self.held_out} photos held out {self.first_loss:.4f} before, {self.best_loss:.4f} after "
                f"step {self.best_step} of {self.steps} ({helped})",
                str(self.memorised),
                f"{'pipeline' if self.full else 'LoRA'} in {self.weights}; paint with: stablerep-gen {use} "
                "--prompts FILE --out DIR",
            ]
        )
