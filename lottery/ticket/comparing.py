"""Compares two tickets of one spec that may have been made on different machines."""

import numpy as np
from numpy.typing import NDArray

from lottery.ticket.stored import StoredTicket


def count_differences(one: StoredTicket, other: StoredTicket) -> tuple[int, int]:
    """Returns how many bits of the masks differ, and how many there are."""
    differ = total = 0
    for name, entry in one.entries.items():
        if "kept" in entry:
            a, b = mask_of(one, name), mask_of(other, name)
            differ += int(np.bitwise_count(a ^ b).sum())
            total += one.info(name).numel
    return differ, total


def mask_of(stored: StoredTicket, name: str) -> NDArray[np.uint8]:
    """Returns which weights of a tensor stay, as bits. A tensor that is stored whole has zeros where they do not."""
    mask_OB = stored.matrix(name).bitmask_OB
    return np.packbits((stored.tensor(name) != 0).numpy()) if mask_OB is None else mask_OB
