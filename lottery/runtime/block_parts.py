"""Where the tensors of a checkpoint lie in a transformers model: which parameter, which expert of it, which rows.

Legend: O outputs, I inputs.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

import torch

from lottery.models.families import Place

# Published files hold the matrices of each expert; those that transformers saved may hold its own two tensors.
NAME = re.compile(r"(.*\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.experts\.(?:(\d+)\.)?(\w+?)(?:\.weight)?")
PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}  # Mixtral's names
FUSED = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", None)}


@dataclass(frozen=True)
class Part:
    """Where a tensor of a checkpoint lies in a parameter of the model: all of it, or the matrix of one expert, or its
    first (`half` 0) or second half of rows."""

    parameter: str
    expert: int | None = None
    half: int | None = None

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.expert is not None:
            tensor = tensor[self.expert]
        return tensor if self.half is None else tensor.chunk(2)[self.half]


@dataclass(frozen=True)
class Matrix:
    """A matrix of the model that a method can prune. `module` is the path of the module whose input it multiplies.

    Of experts the module holds all; `expert` says which one, and `second` that its input is computed inside the module.
    """

    name: str  # of the tensor in the checkpoint
    module: str
    part: Part
    transposed: bool = False
    expert: int | None = None
    second: bool = False
    of: int = 1  # the number of matrices in that tensor

    def part_of_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns this matrix of a tensor of the checkpoint that may hold the matrices of all experts."""
        return tensor if self.of == 1 else tensor[self.expert]


def find_part(place: Place, parameters: Collection[str], prefix: str, head: str) -> Part | None:
    """Returns where a tensor of a checkpoint lies in the model, None if that is not known.

    Files of some families leave the prefix of the base model out; files of mixtures may hold each expert apart.
    """
    if found := NAME.fullmatch(place.name):
        layer, expert, own = found.groups()
        own, half = FUSED.get(PROJECTIONS.get(own, own), (own, None)) if expert else (own, None)
        part = Part(f"{layer}.mlp.experts.{own}", int(expert) if expert else None, half)
        return part if part.parameter in parameters else None
    if place.role == "lm_head":
        return Part(f"{head}.weight")
    name = place.name.replace(".block_sparse_moe.", ".mlp.")
    return next((Part(n) for n in (name, f"{prefix}.{name}") if n in parameters), None)
