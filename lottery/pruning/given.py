"""Takes masks that a training was made under: which weights stay was decided before."""

from typing import Any

import numpy as np

from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.headers import TensorInfo
from lottery.progress import Advance


class GivenSelection:
    """Selects the weights that live under the masks of its source, also those whose value is 0."""

    sparser = 0
    calibrate_s = 0.0

    def __init__(self, source: Source) -> None:
        self.masks: dict[str, np.ndarray] = source.masks  # type: ignore[attr-defined]  # only trained sources have masks

    def show(self, advance: Advance) -> Advance:
        """Returns the function that counts the bytes of the tensors that were selected."""
        return advance

    def prepare(self, place: Place) -> None:
        """A tensor is selected by itself."""

    def mask(
        self, place: Place, info: TensorInfo, bits_OI: np.ndarray, zeros: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns a tensor's bitmask_OB, and what the record says of it."""
        mask_OI = self.masks[place.name]
        return np.packbits(mask_OI, axis=1, bitorder="little"), {"requested": int(mask_OI.sum())}
