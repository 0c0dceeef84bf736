"""This file searches, by bisection, the sparsity at which a curve crosses a limit.

From the known points it says which sparsity to try next and whether the search is done.
"""

from collections.abc import Mapping


def find_bracket(points: Mapping[float, float], limit: float) -> tuple[float, float]:
    """Returns (below, above), the two sparsities between which the ratio first exceeds `limit`.

    `points` holds sparsity -> ratio. If all points exceed the limit, below is 0. If none does, above is 1, since a
    model without weights tells nothing.
    """
    below = 0.0
    for sparsity in sorted(points):
        if not points[sparsity] <= limit:  # an overflow (NaN) counts as above the limit
            return below, sparsity
        below = sparsity
    return below, 1.0


def next_sparsity(below: float, above: float, width: float) -> float | None:
    """Returns the sparsity to try next, or None if the two are at most `width` apart.

    It is a multiple of `width` if one lies between the two.
    """
    if above - below <= width * (1 + 1e-9):
        return None
    middle = round(round((below + above) / 2 / width) * width, 10)
    return middle if below < middle < above else (below + above) / 2


def is_done(points: Mapping[float, float], limit: float, width: float) -> bool:
    """Returns whether the crossing is known to `width`."""
    return bool(points) and next_sparsity(*find_bracket(points, limit), width) is None
