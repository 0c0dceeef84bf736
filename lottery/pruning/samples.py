"""The tokens that a method looks at. This file is small, because methods that look at no data import it too.

Legend: N samples, T tokens of a sample.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lottery.pruning.calibration import Calibration


@dataclass(frozen=True)
class Samples:
    """The tokens (int64 [N, T]), what is recorded of them, and the device on which the model looks at them."""

    calibration: "Calibration"
    ids_NT: np.ndarray
    device: str

    @property
    def sha256(self) -> str:
        """Returns the hash of the tokens, which a ticket records."""
        return hashlib.sha256(self.ids_NT.tobytes()).hexdigest()
