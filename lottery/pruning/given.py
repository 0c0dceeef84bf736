"""Takes what was decided before: masks that a training was made under, or another ticket's survivors and their values.

Legend: O rows, I columns, B = ceil(I/8).
"""

from typing import Any

import numpy as np

from lottery.kernels import bitmask
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.headers import TensorInfo
from lottery.progress import Advance
from lottery.ticket.stored import StoredTicket

SAID = ("layer_error", "damping")  # what a record says of a tensor that a method solved


class EachByItself:
    """What selections have in common that decide on one tensor after the other."""

    sparser = 0  # number of targeted tensors that hold more zeros than the spec asks for
    calibrate_s = 0.0

    def show(self, advance: Advance) -> Advance:
        """Returns the function that counts the bytes of the tensors that were selected."""
        return advance

    def prepare(self, place: Place) -> None:
        """A tensor is selected by itself."""


class GivenSelection(EachByItself):
    """Selects the weights that live under the masks of its source, also those whose value is 0."""

    def __init__(self, source: Source) -> None:
        self.masks: dict[str, np.ndarray] = source.masks  # type: ignore[attr-defined]  # only trained sources have masks

    def mask(
        self, place: Place, info: TensorInfo, bits_OI: np.ndarray, zeros: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns a tensor's bitmask_OB, and what the record says of it."""
        mask_OI = self.masks[place.name]
        return np.packbits(mask_OI, axis=1, bitorder="little"), {"requested": int(mask_OI.sum())}


class SolvedSelection(EachByItself):
    """Selects the survivors of a ticket that a method made of the same source, and gives them the values that they have
    there, so that the same ticket can be stored in another way without its samples. Its hashes are checked as it is read."""

    def __init__(self, solved: StoredTicket) -> None:
        self.solved = solved

    @staticmethod
    def can_take(solved: StoredTicket) -> bool:
        """Returns whether the ticket tells which weights survived: one that is not packed holds no masks."""
        return not solved.is_mask_only and all(e["packed"] for e in solved.entries.values() if "requested" in e)

    def mask(
        self, place: Place, info: TensorInfo, bits_OI: np.ndarray, zeros: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns a tensor's bitmask_OB, and what the record says of it. Writes its values into `bits_OI`."""
        entry, matrix = self.solved.entries[place.name], self.solved.matrix(place.name)
        assert matrix.bitmask_OB is not None, "can_take was asked"
        mask_OB = matrix.bitmask_OB.copy()  # it lies in memory that the next tensor may use
        np.copyto(bits_OI, bitmask.unpack(mask_OB, matrix.values_K, matrix.columns))
        self.sparser += entry["kept"] < entry["requested"]
        return mask_OB, {"requested": entry["requested"]} | {key: entry[key] for key in SAID if key in entry}
