"""A calibration text that says nothing."""

from pathlib import Path

import numpy as np


def write_random_words(path: Path) -> Path:
    """Writes 3,000 words at random: none of what they say is in an evaluation text."""
    words = [f"w{i:03d}" for i in range(700)]
    path.write_text(" ".join(np.random.default_rng(0).choice(words, 3000)))
    return path
