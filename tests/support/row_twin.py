"""The slow, obvious twin of a selection in which every row loses as many weights as the others."""

import heapq
from typing import Any

import numpy as np


def twin_rows(keys_OI: np.ndarray, k: int) -> np.ndarray:
    """Returns which weights stay, bool [O, I]. All keys of 0 go. Then the rows lose their smallest keys one by one: the
    next to lose one is a row that has lost the fewest, of these the one whose next key is the smallest, of these the
    first."""
    columns = keys_OI.shape[1]
    order_OI = np.argsort(keys_OI, axis=1, kind="stable")
    lost = [int((row == 0).sum()) for row in keys_OI]

    def turn(r: int) -> tuple[int, Any, int]:
        return lost[r], keys_OI[r, order_OI[r, lost[r]]], r

    ahead = [turn(r) for r in range(len(keys_OI)) if lost[r] < columns]
    heapq.heapify(ahead)
    for _ in range(k - sum(lost)):
        r = heapq.heappop(ahead)[2]
        lost[r] += 1
        if lost[r] < columns:
            heapq.heappush(ahead, turn(r))
    stays_OI = np.ones(keys_OI.shape, bool)
    for r, row in enumerate(order_OI):
        stays_OI[r, row[: lost[r]]] = False
    return stays_OI
