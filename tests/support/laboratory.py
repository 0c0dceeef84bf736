"""A laboratory small enough for tests: a network of a few thousand weights and a text of random words."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lottery.training.network import Network
from lottery.training.outputs import Outputs
from lottery.training.recipe import Setup, Shape, Training
from lottery.training.windows import Batches

SHAPE = Shape(layers=2, width=16, heads=2, inner=24, vocabulary=64, context=16)
SETUP = Setup("0" * 64, SHAPE, batch=4)
DENSE = Training("dense", steps=40, mask_steps=40)
ROUND = replace(DENSE, arm="rewound", round=2, rewind=2, mask_rewind=2)


def small_network() -> Network:
    return Network(SHAPE)


def tokens(seed: int = 0, count: int = 4_000) -> np.ndarray:
    """A stream in which each token follows from the one before, with noise, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 64, count)
    stream = np.zeros(count, np.int64)
    for i in range(1, count):
        stream[i] = (stream[i - 1] * 5 + 1) % 64 if noise[i] < 48 else noise[i]
    return stream


def small_batches() -> Batches:
    return Batches(tokens(), SETUP.batch, SHAPE.context)


def small_outputs(folder: Path) -> Outputs:
    return Outputs(SETUP, folder)
