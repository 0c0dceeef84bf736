"""Where a curve crosses a limit, from the points that are known: what a search asks for next, and whether it is done."""

from collections.abc import Mapping


def find_bracket(points: Mapping[float, float], limit: float) -> tuple[float, float]:
    """(below, above): between which two sparsities the ratio first exceeds `limit`. `points`: sparsity -> ratio.

    Where all do, below is 0; where none does, above is 1, since a model without weights says nothing.
    """
    below = 0.0
    for sparsity in sorted(points):
        if not points[sparsity] <= limit:  # an overflow (NaN) is above
            return below, sparsity
        below = sparsity
    return below, 1.0


def next_sparsity(below: float, above: float, width: float) -> float | None:
    """The sparsity to try next, a multiple of `width` where one lies between; None where it is known well enough."""
    if above - below <= width * (1 + 1e-9):
        return None
    middle = round(round((below + above) / 2 / width) * width, 10)
    return middle if below < middle < above else (below + above) / 2


def is_done(points: Mapping[float, float], limit: float, width: float) -> bool:
    """Whether the crossing is known as well as was asked."""
    return bool(points) and next_sparsity(*find_bracket(points, limit), width) is None
