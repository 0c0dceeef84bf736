"""Experts of a mixture that stay packed in memory.

transformers holds all experts of a layer in two tensors. Here each matrix of an expert is a sparse layer of its own. Few
tokens are multiplied straight from the stored matrices, and an expert that gets no token costs nothing. For many
tokens the experts that get some are unpacked into the workspace, as the two tensors of transformers, whose own
function then computes the bits of the dense model.

Legend: E experts, O outputs, I inputs, T tokens, C experts chosen for a token.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lottery.kernels import product, quantizing
from lottery.runtime.block_parts import NAME, PROJECTIONS
from lottery.runtime.layers import Workspace, bits_of, refuse_gradients
from lottery.runtime.sparse import SparseLinear
from lottery.ticket.matrix import StoredMatrix
from lottery.ticket.stored import StoredTicket


def packed_experts(source: StoredTicket) -> dict[str, list[str]]:
    """Returns the tensors of the experts of each layer in which at least one is packed or quantized.

    The key is the path of the experts' module in the model.
    """
    layers: dict[str, list[str]] = {}
    small: set[str] = set()
    for name, entry in source.entries.items():
        if found := NAME.fullmatch(name):
            path = f"{found[1]}.mlp.experts"
            layers.setdefault(path, []).append(name)
            if entry.get("packed") or "quantized" in entry or (source.is_mask_only and "kept" in entry):
                small.add(path)
    return {path: names for path, names in layers.items() if path in small}


class Expert(nn.Module):
    """One expert: two or three sparse layers."""

    gate_up_proj: SparseLinear | None  # either this one, or the next two
    gate_proj: SparseLinear
    up_proj: SparseLinear
    down_proj: SparseLinear

    def __init__(self, act_fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.act_fn, self.gate_up_proj = act_fn, None

    def forward(self, x_TI: torch.Tensor) -> torch.Tensor:
        if self.gate_up_proj is not None:
            gate, up = self.gate_up_proj(x_TI).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x_TI), self.up_proj(x_TI)
        return self.down_proj(self.act_fn(gate) * up)

    def unpack_weights(self, gate_up_OI: torch.Tensor, down_OI: torch.Tensor) -> None:
        """Writes the dense matrices, those of gate and up one below the other."""
        if self.gate_up_proj is not None:
            self.gate_up_proj.unpack_weight(gate_up_OI)
        else:
            self.gate_proj.unpack_weight(gate_up_OI[: self.gate_proj.out_features])
            self.up_proj.unpack_weight(gate_up_OI[self.gate_proj.out_features :])
        self.down_proj.unpack_weight(down_OI)


class SparseExperts(nn.Module):
    """Takes the place of transformers' module for the experts of a layer."""

    workspace: Workspace

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own  # transformers' module, without its two parameters
        self.left_out = own.gate_up_proj, own.down_proj
        del own.gate_up_proj, own.down_proj
        own._is_hf_initialized = True  # so that transformers does not fill them with random numbers
        self.experts = nn.ModuleList(Expert(own.act_fn) for _ in range(own.num_experts))

    @property
    def numel(self) -> int:
        return sum(parameter.numel() for parameter in self.left_out)

    def fill(self, source: StoredTicket, names: list[str], workspace: Workspace) -> None:
        """Reads the matrices of all experts from the ticket."""
        self.workspace = workspace
        for name in names:
            found = NAME.fullmatch(name)
            assert found, "packed_experts found these names by the same expression"
            _, expert, matrix_name = found.groups()
            matrix = read_matrix(source, name)
            parts = [(int(expert), matrix)] if expert else enumerate(split(matrix, len(self.experts)))
            for number, part in parts:
                layer = SparseLinear(part, None, workspace, "cpu").eval()
                setattr(self.experts[number], PROJECTIONS.get(matrix_name, matrix_name), layer)
        self.eval()

    def forward(self, x_TI: torch.Tensor, chosen_TC: torch.Tensor, weight_TC: torch.Tensor) -> torch.Tensor:
        refuse_gradients(x_TI)
        first: Any = self.experts[0].down_proj
        if first.group is not None and first.way.few and len(x_TI) <= product.MOST_TOKENS:
            return self.multiply_few(x_TI, chosen_TC, weight_TC)
        with self.workspace.lock:
            try:
                self.unpack_weights(chosen_TC)
                return self.own(x_TI, chosen_TC, weight_TC)
            finally:
                self.own.__dict__.pop("gate_up_proj", None)
                self.own.__dict__.pop("down_proj", None)

    def multiply_few(self, x_TI: torch.Tensor, chosen_TC: torch.Tensor, weight_TC: torch.Tensor) -> torch.Tensor:
        tokens, each = chosen_TC.shape
        chosen = chosen_TC.flatten().tolist()
        if tokens == 1:
            out = torch.cat([self.experts[expert](x_TI) for expert in chosen])
        else:
            out = x_TI.new_empty(len(chosen), x_TI.shape[1])
            for expert in dict.fromkeys(chosen):
                places = [place for place, other in enumerate(chosen) if other == expert]
                out[places] = self.experts[expert](x_TI[[place // each for place in places]])
        return (out.view(tokens, each, -1) * weight_TC.unsqueeze(-1)).sum(1).to(x_TI.dtype)

    def unpack_weights(self, chosen_TC: torch.Tensor) -> None:
        """Gives transformers' module its two tensors. Of an expert that no token chose the numbers are undefined."""
        gate_up, down = (parameter.shape for parameter in self.left_out)
        buffer = self.workspace.buffer
        self.own.gate_up_proj = buffer[: gate_up.numel()].view(gate_up)
        self.own.down_proj = buffer[gate_up.numel() : self.numel].view(down)
        for expert in chosen_TC.unique().tolist():
            one: Any = self.experts[expert]
            one.unpack_weights(self.own.gate_up_proj[expert], self.own.down_proj[expert])


def read_matrix(source: StoredTicket, name: str) -> StoredMatrix:
    """Returns a tensor as it is stored, also one that is neither pruned nor quantized."""
    entry, info = source.entries[name], source.tensors[name]
    if "kept" in entry or "quantized" in entry:
        return source.matrix(name)
    columns = info.shape[-1]
    return StoredMatrix(info.numel // columns, columns, info.dtype, False, None, bits_of(source.tensor(name)))


def split(matrix: StoredMatrix, experts: int) -> Iterator[StoredMatrix]:
    """Yields the matrix of each expert of a tensor that holds all, [E, O, I]."""
    rows = matrix.rows // experts
    values_K, mask_OB, scale_O = matrix.flat, matrix.bitmask_OB, matrix.scale_O
    start_O = None if mask_OB is None else [*quantizing.row_offsets(mask_OB), len(values_K)]
    for first in range(0, matrix.rows, rows):
        last = first + rows
        ends = (first * matrix.columns, last * matrix.columns) if start_O is None else (start_O[first], start_O[last])
        yield replace(
            matrix, rows=rows, values_K=values_K[ends[0] : ends[1]],
            bitmask_OB=None if mask_OB is None else mask_OB[first:last], scale_O=None if scale_O is None else scale_O[first:last],
        )  # fmt: skip


def leave_out(model: Any, paths: list[str]) -> None:
    """Puts empty experts of ours in the place of transformers', before a weight is loaded."""
    for path in paths:
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, SparseExperts(model.get_submodule(path)))
