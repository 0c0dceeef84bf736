"""How many weights of a matrix go, and the choice of those with the lowest scores.

Legend: O rows (outputs), I columns (inputs), C columns of a block, B = ceil(I/8).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lottery.kernels import select
from lottery.kernels.rows import select_rows


@dataclass(frozen=True)
class Ask:
    """How many weights of a matrix go: `remove` of them, or all but `keep` in each `group` neighbours of a row."""

    remove: int
    groups: tuple[int, int] | None = None


@dataclass
class Solved:
    """A pruned matrix [O, I], and which of its weights stay (bool). `damping` is the ridge where it had to be raised."""

    weight_OI: torch.Tensor
    stays_OI: torch.Tensor
    damping: float | None = None


def choose_in_rows(score_OI: torch.Tensor, zero_OI: torch.Tensor, ask: Ask) -> torch.Tensor:
    """Returns which weights stay (bool [O, I]) when every row loses as many of the lowest scores, or every group."""
    bits_OI = score_bits(score_OI, zero_OI)
    mask_OB = select.select_groups(bits_OI, *ask.groups) if ask.groups else select_rows(bits_OI, ask.remove)
    return as_flags(mask_OB, score_OI.shape[1]).to(score_OI.device)


def choose(score_OC: torch.Tensor, zero_OC: torch.Tensor, remove: int) -> torch.Tensor:
    """Returns which weights stay (bool [O, C]) when the lowest scores of all rows together go."""
    mask_1B = select_rows(score_bits(score_OC, zero_OC).reshape(1, -1), remove)
    return as_flags(mask_1B, score_OC.numel()).reshape(score_OC.shape).to(score_OC.device)


def score_bits(score_OI: torch.Tensor, zero_OI: torch.Tensor) -> np.ndarray:
    """Returns the bits of scores, which must not be negative, as the kernels take them: 0 for weights that are zero, and
    only for them. The scores are changed in place."""
    score_OI.clamp_(min=torch.finfo(score_OI.dtype).tiny).masked_fill_(zero_OI, 0)
    return score_OI.cpu().contiguous().numpy().view(f"u{score_OI.itemsize}")


def as_flags(mask_OB: np.ndarray, columns: int) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(mask_OB, axis=1, count=columns, bitorder="little").view(bool))


def share_out(remove: int, zeros: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Returns how many weights each block loses, `remove` in all: in proportion to its size, with running sums that are
    rounded. A block that has more zeros than its share loses all of them, and the others lose fewer."""
    zero_B, size_B = np.array(zeros), np.array(sizes)
    lost_B, free_B = zero_B.copy(), np.ones(len(zeros), bool)
    while True:
        left, total = max(remove, zero_B.sum()) - lost_B[~free_B].sum(), size_B[free_B].sum()
        lost_B[free_B] = np.diff((2 * left * np.cumsum(size_B[free_B]) + total) // (2 * total), prepend=0)
        full_B = lost_B < zero_B
        if not full_B.any():
            return lost_B.tolist()
        lost_B[full_B] = zero_B[full_B]
        free_B &= ~full_B
