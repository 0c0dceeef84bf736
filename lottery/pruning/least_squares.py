"""The weights on a support whose outputs are nearest to those that are asked for, and how near they are.

Legend: O rows (outputs), I columns (inputs).
"""

import torch

from lottery.pruning.products import matmul
from lottery.pruning.statistics import Statistics, nonzero

RIDGE = 0.01  # added to the unit diagonal of a Gram matrix
STEPS = 20  # of conjugate gradients
ORTHOGONAL = 12  # of their residuals, to which later ones are made orthogonal
CHUNK_BYTES = 2**23  # of one matrix of the rows that are solved together


def least_squares(
    weight_OI: torch.Tensor,
    stays_OI: torch.Tensor,
    statistics: Statistics,
    start_OI: torch.Tensor | None = None,
    steps: int = STEPS,
) -> torch.Tensor:
    """Returns the weights on a support that give the outputs nearest to those of `weight_OI`, for each row alone, or to
    those that the statistics ask for. The result is of the type of `start_OI`, which is the weight if it is not given.

    With v = w * norm and A = the Gram matrix of unit diagonal plus the ridge, it minimizes (v' - v) A (v' - v)^T by
    steps of conjugate gradients from the masked start. Rows are solved in blocks to bound memory.
    """
    out_OI = torch.empty_like(weight_OI if start_OI is None else start_OI)
    for part in row_blocks(weight_OI, statistics):
        goal_OI = None if statistics.goal_OI is None else statistics.goal_OI[part]
        start_part = weight_OI[part] if start_OI is None else start_OI[part]
        out_OI[part] = least_squares_of_rows(weight_OI[part], stays_OI[part], statistics, goal_OI, start_part, steps)
    return out_OI


def row_blocks(weight_OI: torch.Tensor, statistics: Statistics) -> list[slice]:
    rows = max(1, CHUNK_BYTES // (weight_OI.shape[1] * statistics.norm_I.itemsize))
    return [slice(first, first + rows) for first in range(0, len(weight_OI), rows)]


def least_squares_of_rows(
    weight_OI: torch.Tensor,
    stays_OI: torch.Tensor,
    statistics: Statistics,
    goal_OI: torch.Tensor | None,
    start_OI: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Solves some rows. Each residual is made orthogonal to the first ones, as it is without rounding: inputs have some
    directions that are far stronger than the others, and rounding brings those back, differently on each processor."""
    gram_II, scale_I = statistics.gram_II, statistics.scale
    assert gram_II is not None
    mask_OI = stays_OI.to(scale_I.dtype)  # a product with a bool takes six times as long

    def product(x_OI: torch.Tensor) -> torch.Tensor:
        return matmul(x_OI, gram_II).add_(x_OI, alpha=RIDGE).mul_(mask_OI)

    dense_OI = weight_OI * scale_I
    solution_OI = start_OI * scale_I * mask_OI
    if goal_OI is None:
        residual_OI = product(dense_OI - solution_OI)
    else:
        residual_OI = goal_OI.add(dense_OI, alpha=RIDGE).mul_(mask_OI).sub_(product(solution_OI))
    direction_OI, energy_O = residual_OI.clone(), squares(residual_OI)
    least_O = energy_O * torch.finfo(scale_I.dtype).eps ** 2  # a row with less is solved as well as its type can
    first: list[torch.Tensor] = []
    for _ in range(steps):
        if len(first) < ORTHOGONAL:
            first.append(residual_OI / nonzero(energy_O.sqrt())[:, None])
        image_OI = product(direction_OI)
        step_O = energy_O / nonzero((direction_OI * image_OI).sum(1))
        solution_OI.addcmul_(step_O[:, None], direction_OI)
        residual_OI.addcmul_(step_O[:, None], image_OI, value=-1)
        for unit_OI in first:
            residual_OI.addcmul_((residual_OI * unit_OI).sum(1)[:, None], unit_OI, value=-1)
        after_O = squares(residual_OI)
        after_O *= after_O > least_O
        direction_OI.mul_((after_O / nonzero(energy_O))[:, None]).add_(residual_OI)
        energy_O = after_O
    return solution_OI / scale_I


def squares(x_OI: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x_OI, dim=1).square()


def layer_error(before_OI: torch.Tensor, after_OI: torch.Tensor, statistics: Statistics) -> float:
    """Returns ||X(w' - w)||^2 / ||Xw||^2 over all rows: the relative squared error of the matrix's outputs."""
    assert statistics.gram_II is not None
    lost = total = 0.0
    for part in row_blocks(before_OI, statistics):
        dense_OI = before_OI[part] * statistics.norm_I
        gap_OI = after_OI[part] * statistics.norm_I - dense_OI
        lost += float((matmul(gap_OI, statistics.gram_II) * gap_OI).sum(dtype=torch.float64))
        total += float((matmul(dense_OI, statistics.gram_II) * dense_OI).sum(dtype=torch.float64))
    return lost / total if total else 0.0
