"""Knows what a run measures and how long that takes: one line says it before long work, one bar covers all models."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from lottery.measuring.cache import Cache
from lottery.measuring.samples import NEW_TOKENS, PROMPTS
from lottery.measuring.setup import Setup
from lottery.measuring.speed import BUDGET_S
from lottery.progress import Advance, overall_bar, progress_bar, say

FIRST_TOKENS = 4  # decoded to learn how long a token takes
LONG_S = 20.0  # work that takes longer is announced
# Timing a model takes about so many decoding steps where the machine is quiet, and the second number at the least: a prompt of
# 256 tokens counts as 32 steps.
SPEED_STEPS, LEAST_SPEED_STEPS = 3 * (32 + 49) + 4 * NEW_TOKENS, 2 * 32 + 15 + NEW_TOKENS
UNTOLD = ("load", "prune")  # kinds that take little time


@dataclass
class Work:
    """The stages of a run's measuring, in order. `left` holds their units, as (model, kind) -> amount.

    The units of the kinds are: a load, the pruning of a control, a window of perplexity, a sample, all timing of speed. `rate`
    holds the seconds of one unit, as far as known; what one model takes is expected of the next.
    """

    what: str = "this ticket"
    left: dict[tuple[str, str], float] = field(default_factory=dict)
    rate: dict[str, float] = field(default_factory=dict)
    cache: Cache = field(default_factory=Cache)  # of the process: a study announces its first ticket alone
    show_share: Callable[[float, str], None] = lambda share, note: None
    began: float = 0.0
    is_told: bool = False  # what takes how long is said at once when it is known, or never

    def add(self, model: str, setup: Setup) -> None:
        """Adds what `setup` asks for of one model."""
        stages = {
            "load": 1.0,
            "perplexity": 0 if setup.ids_NT is None else len(setup.ids_NT),
            "samples": len(PROMPTS) if "samples" in setup.measures else 0,
            "speed": 1.0 if "speed" in setup.measures else 0,
        }
        if any(amount for kind, amount in stages.items() if kind not in UNTOLD):
            self.left |= {(model, kind): float(amount) for kind, amount in stages.items() if amount}

    def drop(self, model: str) -> None:
        """Forgets what is left of a model, which is measured or need not be."""
        for stage in [stage for stage in self.left if stage[0] == model]:
            del self.left[stage]

    @contextmanager
    def stage(self, model: str, kind: str, title: str, total: float | None = None) -> Iterator[Advance]:
        """Shows one stage. Yields `advance(amount, note)`, which counts units of `total` and learns their seconds."""
        began, done = time.perf_counter(), 0.0
        whole = self.left.get((model, kind), 0.0)
        with progress_bar(title, total) as show:

            def advance(amount: float = 1, note: str = "") -> None:
                nonlocal done
                done += amount
                spent = time.perf_counter() - began
                if total:
                    share = min(1.0, done / total)
                    self.rate[kind] = spent / (whole * share) if whole else 0.0
                else:  # how many repeats come is not known, only how long they may take
                    share = min(1.0, spent / self.rate.get(kind, math.inf))
                self.left[model, kind] = whole * (1 - share)
                self.tell()
                show(amount, ", ".join(part for part in (note, self.time_left()) if part))

            yield advance
        if whole:
            self.rate[kind] = (time.perf_counter() - began) / whole
        self.left.pop((model, kind), None)
        self.tell()

    def learn_token_seconds(self, measure: Callable[[int], float]) -> None:
        """Learns how long samples and speed take, once per run. `measure` decodes so many tokens, and returns their seconds."""
        if "samples" in self.rate:
            return
        measure(1)  # the first token waits for the weights to be read
        first, more = measure(1), measure(1 + FIRST_TOKENS)
        token = max(more - first, more / 10) / FIRST_TOKENS  # on a busy machine the longer call may end sooner
        self.rate["samples"] = first + (NEW_TOKENS - 1) * token
        self.rate["speed"] = max(LEAST_SPEED_STEPS * token, min(BUDGET_S, SPEED_STEPS * token))
        self.tell()

    def seconds(self, stages: Sequence[tuple[str, str]]) -> float:
        """Returns how long these stages take. What is not known yet is left out."""
        return sum(self.left[stage] * self.rate.get(stage[1], 0.0) for stage in stages)

    def time_left(self) -> str:
        """Returns how long all that is left takes, in words; "" while that is not known."""
        if any(kind not in self.rate for _, kind in self.left if kind not in UNTOLD):
            return ""
        return f"{duration(self.seconds(list(self.left)))} left in all"

    def tell(self) -> None:
        """Says once what will take how long, if it is long, and moves the bar, as soon as that is known."""
        if not (note := self.time_left()):
            return
        spent, left = time.perf_counter() - self.began, self.seconds(list(self.left))
        self.show_share(spent / max(spent + left, 1e-9), note)
        told, self.is_told = self.is_told, True
        if told or left < LONG_S or self.cache.values.get("announced"):
            return
        self.cache.values["announced"] = True
        parts = []
        for model in dict.fromkeys(model for model, _ in self.left):
            stages = [stage for stage in self.left if stage[0] == model]
            about = [f"{kind} {duration(self.seconds([s]))}" for s in stages if (kind := s[1]) not in UNTOLD]
            parts.append(f"{model} {duration(self.seconds(stages))} ({', '.join(about)})")
        say(f"measuring {self.what} takes about {duration(left)} more: {'; '.join(parts)}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows one bar over all stages of the block, on a terminal."""
        self.began = time.perf_counter()
        with overall_bar() as self.show_share:
            yield


def duration(seconds: float) -> str:
    """Returns a duration in words: 8 s, 3 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
