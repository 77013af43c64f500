"""What a LoRA file holds for one layer of a model, and what it makes of that layer's weights W.

W becomes W + weight * alpha / rank * D, where D is kept in few numbers:

    LoRA (Hu et al. 2021)             D = up @ down, two thin matrices
    LoHa (Hyeon-Woo et al. 2021)      D = (w1_a @ w1_b) * (w2_a @ w2_b), element by element
    DoRA (Liu et al. 2024) of either  each output channel of the changed W then gets the length that the file says
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

HADAMARD = ("w1_a", "w1_b", "w2_a", "w2_b")
CORES = ("t1", "t2")


@dataclass
class LoraLayer:
    """The matrices of a layer, by what LyCORIS calls them.

    LoRA: "down" [rank, in, ...] and "up" [out, rank, ...]. LoHa: "w1_a" [out, rank], "w1_b" [rank, in * area], "w2_a"
    and "w2_b" likewise; where "t1" and "t2" [rank, rank, height, width] lie between them, w1_a is [rank, out] and w1_b
    [rank, in].
    """

    key: str  # one of its keys, to name it by
    matrices: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None
    magnitude: Tensor | None = None  # of DoRA: a length for each output
    per_input: bool = False  # or for each input, as LyCORIS once wrote it

    @property
    def is_hadamard(self) -> bool:
        return any(role in self.matrices for role in HADAMARD)

    @property
    def is_whole(self) -> bool:
        roles = (*HADAMARD, *(CORES if "t1" in self.matrices else ())) if self.is_hadamard else ("down", "up")
        ranks = {role: 4 if role in CORES else 2 for role in roles}
        return self.matrices.keys() == {*roles} and all(self.matrices[r].ndim >= least for r, least in ranks.items())

    @property
    def rank(self) -> int:
        return len(self.matrices["w1_b" if self.is_hadamard else "down"])

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weights it is for: outputs, and inputs times the kernel's area."""
        part = self.matrices
        if not self.is_hadamard:
            return len(part["up"]), part["down"][0].numel()
        if "t1" in part:
            return part["w1_a"].shape[1], part["w1_b"].shape[1] * part["t1"][0, 0].numel()
        return len(part["w1_a"]), part["w1_b"][0].numel()

    def fits(self, weight: Tensor) -> bool:
        """Whether it is whole in itself and for a weight [out, in, ...]."""
        part, magnitude = self.matrices, self.magnitude
        if self.shape != (len(weight), weight[0].numel()):
            return False
        if not self.is_hadamard:
            inner = part["up"].flatten(1).shape[1] == self.rank
        else:
            inner = all(part[name].shape == part[name.replace("1", "2")].shape for name in part if "1" in name)
            first = part["w1_a"].shape[1] if "t1" not in part else len(part["w1_a"])
            inner &= first == self.rank and ("t1" not in part or part["t1"].shape[:2] == (first, first))
        return inner and (magnitude is None or magnitude.numel() == weight.shape[1 if self.per_input else 0])

    def change(self) -> Tensor:
        """D, [out, in * area] or [out, in, height, width], float32."""
        part = {role: matrix.float() for role, matrix in self.matrices.items()}
        if not self.is_hadamard:
            return part["up"].flatten(1) @ part["down"].flatten(1)
        if "t1" not in part:
            return (part["w1_a"] @ part["w1_b"]) * (part["w2_a"] @ part["w2_b"])
        first, second = (
            torch.einsum("ijhw,io,jn->onhw", part[f"t{n}"], part[f"w{n}_a"], part[f"w{n}_b"]) for n in (1, 2)
        )
        return first * second

    def add_to(self, weight: Tensor, scale: float) -> Tensor:
        """The changed weight, float32."""
        changed = weight.float() + scale * self.change().reshape(weight.shape).to(weight.device)
        if self.magnitude is None:
            return changed
        kept = 1 if self.per_input else 0
        others = [axis for axis in range(weight.ndim) if axis != kept]
        length = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
        return changed * (self.magnitude.float().to(weight.device).reshape(length.shape) / length)
