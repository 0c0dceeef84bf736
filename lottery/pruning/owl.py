"""The allocation `owl`: a transformer block with more outliers loses fewer of its weights.

Yin et al., Outlier Weighed Layerwise Sparsity (OWL), ICML 2024.

Legend: B blocks, O rows, I columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from lottery.errors import InputError
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.parameters import OWL, owl_numbers
from lottery.progress import progress_bar
from lottery.pruning.calibrated import CalibratedSelection
from lottery.pruning.capture import Capture
from lottery.pruning.samples import Samples
from lottery.pruning.solving import Piece
from lottery.pruning.spreading import blocks_of, spread
from lottery.runtime.blocks import Matrix
from lottery.spec import Spec


def counts_by_outliers(
    spec: Spec, source: Source, chosen: Sequence[Place], samples: Samples
) -> tuple[dict[str, int], float]:
    """Returns how many weights each targeted tensor loses, and the seconds that the samples took to go through the blocks.

    D is 100 times the share of outliers of each block (`OutlierPass`). A block keeps
    2 LAMBDA (D - min D) / (max D - min D) and what is left over is shared evenly, so that the mean over the targeted
    weights is exactly what the sparsity leaves. The published code takes the mean over blocks, which is the same where
    blocks have the same number of weights. All matrices of a block lose the same share.
    """
    m, width = owl_numbers(spec.allocation) or OWL
    try:
        seen = OutlierPass(source, [p for p in chosen if p.layer is not None], samples, m)
        with progress_bar(f"count the outliers of each layer in {len(samples.ids_NT)} samples", seen.steps) as advance:
            seen.show(advance)
            for _ in seen.pieces:
                pass
    except InputError as e:
        raise InputError(str(e).replace("method=magnitude", "allocation=uniform")) from e
    outlier_B = np.array([100 * seen.outliers[block] for block in blocks_of(chosen)])
    extra_B = kept_more(outlier_B, width)
    return spread(spec, source, chosen, lambda x: x - extra_B, 1 + 2 * width), seen.calibrate_s


def kept_more(outlier_B: np.ndarray, width: float) -> np.ndarray:
    """Returns how much more of a block is kept than of that with the fewest outliers: from 0 to 2 LAMBDA."""
    between = np.ptp(outlier_B)
    return 2 * width * (outlier_B - outlier_B.min()) / between if between else np.zeros_like(outlier_B)


class OutlierPass(CalibratedSelection):
    """Runs the samples through the dense blocks and finds the share of outliers of each: of the scores |w| * norm of all
    its targeted matrices together, as wanda has them, those above M times their mean. Nothing is pruned."""

    def __init__(self, source: Source, chosen: Sequence[Place], samples: Samples, m: float) -> None:
        dense = replace(samples, calibration=replace(samples.calibration, propagate="dense"))
        super().__init__(Spec(method="wanda"), source, chosen, dense)  # a method that needs norms alone
        self.m = m
        self.outliers: dict[int, float] = {}

    def _solve(self, matrices: Sequence[Matrix], capture: Capture) -> Iterator[dict[str, Piece]]:
        inputs = [(matrix, statistics) for statistics, group in capture.groups(matrices) for matrix in group]

        def scores() -> Iterator[torch.Tensor]:
            for matrix, statistics in inputs:
                weight_OI = self.solver.weight(self.places[matrix.name], matrix)
                yield weight_OI.to(statistics.norm_I.dtype, copy=True).abs_().mul_(statistics.norm_I)

        count = sum(score_OI.numel() for score_OI in scores())
        limit = self.m * sum(float(score_OI.sum(dtype=torch.float64)) for score_OI in scores()) / count
        above = sum(int((score_OI > limit).sum()) for score_OI in scores())
        block = self.places[matrices[0].name].layer
        assert block is not None
        self.outliers[block] = above / count
        yield from ()
