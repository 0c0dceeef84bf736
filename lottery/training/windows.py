"""Which tokens a step sees: the order of the data is a function of seed, order and step.

A training that is resumed at step s therefore needs no state of a generator.
"""

import numpy as np


class Batches:
    """Draws the batches of a training from the stream of training tokens."""

    def __init__(self, train_T: np.ndarray, batch: int, context: int) -> None:
        self.train_T, self.batch, self.context = train_T, batch, context
        self.offset_T = np.arange(context + 1)

    def at(self, seed: int, order: int, step: int) -> np.ndarray:
        """Returns the windows of one step, int64 [batch, context + 1]: `context` tokens and the one after each."""
        rng = np.random.default_rng([seed, order, step, 0xDA7A])
        start_N = rng.integers(0, len(self.train_T) - self.context, self.batch)
        return self.train_T[start_N[:, None] + self.offset_T].astype(np.int64)

    def first(self, seed: int, number: int) -> np.ndarray:
        """Returns the first batches of a seed's own order, int64 [number, batch, context + 1]."""
        return np.stack([self.at(seed, 0, step) for step in range(number)])
