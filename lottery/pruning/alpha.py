"""The allocation `alpha`: a transformer block whose spectra have heavier tails loses fewer of its weights. It needs no data.

Lu et al., AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning, NeurIPS 2024.

Legend: B blocks, O rows, I columns, E eigenvalues.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.progress import progress_bar
from lottery.pruning.reading import check_finite, stream_of
from lottery.pruning.spreading import blocks_of, spread
from lottery.pruning.tensors import tensor_info
from lottery.spec import METHODS, Spec

BINS = 100  # of the histogram
CHUNK = 1024  # rows or columns that are in memory in float64 at once


def width_of(spec: Spec) -> float:
    """Returns epsilon: blocks lose from 1 - epsilon to 1 + epsilon times as much. Its authors took these values by
    method, at 70%."""
    method = METHODS[spec.method]
    if not method.calibrated:
        return 0.5
    return 0.2 if method.updates else 0.3


def counts_by_spectra(spec: Spec, source: Source, chosen: Sequence[Place]) -> dict[str, int]:
    """Returns how many weights each targeted tensor loses.

    The exponents of a block's matrices (`exponent`) are averaged. The smallest mean becomes 1 - epsilon, the largest
    1 + epsilon, those between lie on a line; blocks lose in these proportions, so that the mean over the targeted weights
    is exactly the sparsity. The published code lets a block lose more than everything at high sparsities.
    """
    exponents: dict[int, list[float]] = {block: [] for block in blocks_of(chosen)}
    inside = [p for p in chosen if p.layer is not None]
    with progress_bar(f"find the spectra of {len(inside)} tensors", len(inside)) as advance:
        stream = stream_of(source, inside, 0)
        for place in inside:
            tensor, release = next(stream)
            check_finite(place.name, tensor_info(source, place).dtype, tensor)
            matrices = tensor if tensor.ndim == 3 else tensor[None]  # of experts each has its own
            assert place.layer is not None
            exponents[place.layer] += [exponent(eigenvalues(matrix)) for matrix in matrices]
            release()
            del tensor, matrices
            advance(1)
    width = width_of(spec)
    times_B = proportions(np.array([mean_of_known(of_block) for of_block in exponents.values()]), width)
    return spread(spec, source, chosen, lambda x: x * times_B, 1 / (1 - width))


def mean_of_known(exponents: Sequence[float]) -> float:
    known = [e for e in exponents if math.isfinite(e)]
    return sum(known) / len(known) if known else math.nan


def proportions(exponent_B: np.ndarray, width: float) -> np.ndarray:
    """Returns how much each block loses, relative to the others; 1 for one that has no exponent."""
    known = np.isfinite(exponent_B)
    times_B = np.ones_like(exponent_B)
    if known.any() and (between := np.ptp(exponent_B[known])):
        times_B[known] += width * (2 * (exponent_B[known] - exponent_B[known].min()) / between - 1)
    return times_B


def eigenvalues(weight_OI: torch.Tensor) -> np.ndarray:
    """Returns the squared singular values in ascending order, without those that are 0 but for rounding [E].

    They are the eigenvalues of the smaller one of w w^T and w^T w, in float64. That takes less time and memory than
    singular values, and in float32 the small ones would be lost.
    """
    if weight_OI.shape[0] < weight_OI.shape[1]:
        weight_OI = weight_OI.T
    gram_II = torch.zeros(weight_OI.shape[1], weight_OI.shape[1], dtype=torch.float64)
    for part_OI in weight_OI.split(CHUNK):
        part_OI = part_OI.double()
        gram_II.addmm_(part_OI.T, part_OI)
    found_E = torch.linalg.eigvalsh(gram_II).numpy()
    return found_E[found_E > max(found_E[-1], 0) * len(found_E) * np.finfo(np.float64).eps]


def exponent(value_E: np.ndarray) -> float:
    """Returns alpha of the power law that the tail of a spectrum follows; not finite for a matrix without two different
    singular values.

    For each eigenvalue x_i that may be where the tail begins, alpha_i is Hill's estimate from x_i on: 1 + n / sum(ln x - ln x_i)
    over the n eigenvalues from there. The one is taken whose power law is nearest to the eigenvalues' distribution, by
    Kolmogorov's distance. A tail may begin up to 1.5 times the peak of the histogram of log10 x in 100 bins (its lower
    end). The lower limit is the published code's: it compares the eigenvalue with log10(0.95 * peak) where 0.95 * peak
    seems to be meant, so that nearly all smaller eigenvalues may begin the tail, and its results depend on it.
    """
    if len(value_E) < 2 or value_E[0] == value_E[-1]:
        return math.nan
    log_E = np.log(value_E)
    height, edges = np.histogram(log_E / math.log(10), BINS)
    peak = 10 ** edges[np.argmax(height)]
    tail_E = np.cumsum(log_E[::-1])[::-1]
    best, nearest = math.nan, 1.0
    for i in np.flatnonzero((value_E[:-1] >= math.log10(0.95 * peak)) & (value_E[:-1] <= 1.5 * peak)):
        n = len(value_E) - i
        spread_of_logs = tail_E[i] - n * log_E[i]
        if spread_of_logs <= 0:
            continue
        alpha = 1 + n / spread_of_logs
        distance = np.abs(1 - np.exp((1 - alpha) * (log_E[i:] - log_E[i])) - np.arange(n) / n).max()
        if distance < nearest:
            best, nearest = alpha, float(distance)
    return best
