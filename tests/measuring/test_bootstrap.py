"""The interval of a run: its numbers are pinned, so that no reordering of the code changes a verdict."""

import numpy as np
import pytest

from lottery.measuring.intervals import bootstrap_interval
from lottery.measuring.perplexity import perplexity_metrics, ratio_metrics

PINNED = (2.897424204541241, 2.9949445127044334)  # of the means over windows, in nats


def test_the_interval_of_a_run_is_that_of_ten_thousand_resamples() -> None:
    rng = np.random.default_rng(7)
    nll_N, dense_N = rng.normal(3, 0.2, 54), rng.normal(2.9, 0.2, 54)
    assert bootstrap_interval(nll_N) == pytest.approx(PINNED, abs=1e-12)
    assert perplexity_metrics(nll_N, 100, 400)["perplexity_hi"] == pytest.approx(np.exp(PINNED[1]))
    low, high = bootstrap_interval(nll_N - dense_N) or (0.0, 0.0)
    metrics = ratio_metrics(nll_N, dense_N)
    assert (metrics["perplexity_ratio_lo"], metrics["perplexity_ratio_hi"]) == pytest.approx(
        (np.exp(low), np.exp(high))
    )
