"""Linear mode connectivity: the loss on the straight line between the ends of two trainings.

If two copies of a training that see the data in another order end in one valley, the line between them has no hill: the
training is stable against the noise of SGD (Frankle et al. 2020). The barrier is the greatest loss on the line minus the
mean of its two ends.

Legend: A points on the line, N windows.
"""

from collections.abc import Callable

import numpy as np

POINTS = 11


def line_losses(
    a_P: np.ndarray, b_P: np.ndarray, nll_of: Callable[[np.ndarray], np.ndarray], points: int = POINTS
) -> np.ndarray:
    """Returns the loss of each window at each point of the line from `a_P` to `b_P`, float64 [A, N].

    `nll_of` takes weights and returns the loss of each window.
    """
    return np.stack([nll_of(point(a_P, b_P, share)) for share in np.linspace(0, 1, points)])


def point(a_P: np.ndarray, b_P: np.ndarray, share: float) -> np.ndarray:
    """Returns the weights at a point of the line; at 0 and 1 exactly those of its ends."""
    if share in (0, 1):
        return a_P if share == 0 else b_P
    return ((1 - share) * a_P.astype(np.float64) + share * b_P).astype(np.float32)


def barrier(line_AN: np.ndarray) -> float:
    """Returns the greatest mean loss on the line minus the mean of its ends; at least 0."""
    loss_A = line_AN.mean(1)
    return float(max(loss_A.max() - (loss_A[0] + loss_A[-1]) / 2, 0.0))
