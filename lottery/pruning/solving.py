"""Applies a method to the matrices that share their inputs, and puts the results together as tensors of the checkpoint.

Legend: O rows, I columns, B = ceil(I/8).
"""

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.tensors import DTYPES
from lottery.progress import say
from lottery.pruning import methods
from lottery.pruning.choosing import Ask, share_out
from lottery.pruning.least_squares import layer_error
from lottery.pruning.statistics import Statistics
from lottery.pruning.tensors import parse_nm_pattern, tensor_info
from lottery.runtime.blocks import BlockModel, Matrix
from lottery.spec import METHODS, Spec
from lottery.ticket.packing import matrix_bits

LARGE = 2**21  # weights of a matrix


@dataclass
class Piece:
    """One pruned matrix: its bitmask, and its new weights unless those that stay are as they were."""

    mask_OB: np.ndarray
    bits_OI: np.ndarray | None
    about: dict[str, float] = field(default_factory=dict)  # what the record says of it: layer_error, damping


def joined(pieces: dict[int, Piece]) -> Piece:
    """Returns the matrices of all experts of one tensor as one matrix, one below the other. Each is given back as soon as
    it was copied."""
    if len(pieces) == 1:
        return pieces.popitem()[1]
    about: dict[str, float] = {}
    if errors := [p.about["layer_error"] for p in pieces.values() if "layer_error" in p.about]:
        about["layer_error"] = round(float(np.mean(errors)), 9)
    if dampings := [p.about["damping"] for p in pieces.values() if "damping" in p.about]:
        about["damping"] = max(dampings)
    mask_OB = np.concatenate([pieces[i].mask_OB for i in sorted(pieces)])
    bits_OI: np.ndarray | None = None
    last = 0
    for i in sorted(pieces):
        if (part := pieces.pop(i).bits_OI) is None:  # then no piece has new weights
            break
        if bits_OI is None:
            bits_OI = np.empty((len(mask_OB), part.shape[1]), part.dtype)
        first, last = last, last + len(part)
        bits_OI[first:last] = part
    return Piece(mask_OB, bits_OI, about)


def give_memory_back() -> None:
    """Returns to the system what the C library keeps of freed memory. It keeps pieces of up to 32 MB, such as some rows of
    a matrix in float32, and after some matrices they add up to hundreds of megabytes."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class Solver:
    """Solves matrices by the method of a spec."""

    def __init__(
        self, spec: Spec, source: Source, places: dict[str, Place], model: BlockModel, counts: Mapping[str, int]
    ) -> None:
        """`counts`: how many weights each tensor loses."""
        self.spec, self.source, self.places, self.model, self.counts = spec, source, places, model, counts
        self.traits = METHODS[spec.method]
        self.shares: dict[str, list[int]] = {}  # of a tensor of all experts, how many weights each loses
        self.starved = self.experts = 0  # experts' matrices that saw few tokens; all of them

    def solve(self, matrix: Matrix, statistics: Statistics, put_back: bool) -> Piece:
        """Returns the pruned matrix. With `put_back` the model gets it too."""
        place = self.places[matrix.name]
        weight_OI = self.weight(place, matrix)
        method = methods.METHODS[self.spec.method]
        self.experts += matrix.expert is not None
        if self.traits.updates and matrix.expert is not None and statistics.tokens < weight_OI.shape[1]:
            self.starved += 1
            method = methods.wanda
        solved = method(weight_OI, statistics, self.ask(place, matrix))
        if not solved.weight_OI.isfinite().all():
            say(f"warning: {place.name}: its new weights overflow in their type; wanda prunes it, without an update")
            solved = methods.wanda(weight_OI, statistics, self.ask(place, matrix))
        about = {"damping": solved.damping} if solved.damping else {}
        if statistics.gram_II is not None:
            about["layer_error"] = round(layer_error(weight_OI, solved.weight_OI, statistics), 9)
        if put_back:
            self.model.replace(matrix, solved.weight_OI)
        if weight_OI.numel() >= LARGE:
            give_memory_back()
        stays = solved.stays_OI.cpu().numpy()
        mask_OB = np.packbits(stays, axis=1, bitorder="little")
        return Piece(mask_OB, matrix_bits(solved.weight_OI.cpu(), False) if self.traits.updates else None, about)

    def weight(self, place: Place, matrix: Matrix) -> torch.Tensor:
        """Returns the dense matrix [O, I] in the type of its file: the model's own, unless that computes in another type."""
        if self.model.dtype == DTYPES[tensor_info(self.source, place).dtype]:
            return self.model.weight(matrix).contiguous()
        tensor = matrix.part_of_tensor(self.source.tensor(place.copy_of or place.name))
        return (tensor.T if matrix.transposed else tensor).to(self.model.device).contiguous()

    def ask(self, place: Place, matrix: Matrix) -> Ask:
        """Returns how many weights of the matrix go. A tensor of many experts loses exactly what is asked for; each of
        them loses its share of that, rounded."""
        numel = tensor_info(self.source, place).numel
        total, pieces = self.counts[place.name], matrix.of
        if pieces == 1:
            return Ask(total, parse_nm_pattern(self.spec))
        if place.name not in self.shares:
            tensor = self.source.tensor(place.copy_of or place.name)
            zeros = [int((one == 0).sum()) for one in tensor]
            self.shares[place.name] = share_out(total, zeros, [numel // pieces] * pieces)
        return Ask(self.shares[place.name][matrix.expert or 0], parse_nm_pattern(self.spec))

    def warn(self) -> None:
        """Says how many experts were pruned without an update."""
        if self.starved:
            say(
                f"warning: {self.starved} of {self.experts} matrices of experts saw fewer tokens than they have columns "
                f"and were pruned by wanda, without an update; give more nsamples"
            )
