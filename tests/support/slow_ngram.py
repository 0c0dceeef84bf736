"""The n-gram model as its paper has it: one dictionary a length, and a recursion."""

import math
from collections import Counter
from collections.abc import Sequence

FALLBACK = (0.5, 1.0, 1.5)


class SlowNGrams:
    def __init__(self, train: Sequence[int], words: int, order: int) -> None:
        self.words, self.order = words, order
        self.seen: dict[int, Counter[tuple[int, ...]]] = {
            k: Counter(tuple(train[i : i + k]) for i in range(len(train) - k + 1)) for k in range(1, order + 1)
        }
        self.contexts = {k: Counter(gram[1:] for gram in self.seen[k + 1]) for k in range(1, order)}

    def probability(self, history: tuple[int, ...], token: int, highest: bool = True) -> float:
        k = len(history) + 1
        counts = (self.seen if highest else self.contexts)[k]
        lower = self.probability(history[1:], token, False) if history else 1 / self.words
        follow = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == history}
        if not follow:
            return lower
        take = dict(zip((1, 2, 3), modified_discounts(counts), strict=True))
        given = sum(take[min(count, 3)] for count in follow.values())
        own = follow[token] - take[min(follow[token], 3)] if token in follow else 0.0
        return (own + given * lower) / sum(follow.values())

    def nll(self, window: Sequence[int]) -> list[float]:
        reach = self.order - 1
        return [
            -math.log(self.probability(tuple(window[max(0, t - reach) : t]), window[t])) for t in range(1, len(window))
        ]


def modified_discounts(counts: Counter[tuple[int, ...]]) -> tuple[float, ...]:
    n = Counter(counts.values())
    if not (n[1] and n[2] and n[3] and n[4]):
        return FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    found = tuple(c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3))
    return found if all(0 < d <= c for c, d in zip((1, 2, 3), found, strict=True)) else FALLBACK
