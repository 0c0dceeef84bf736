"""Finds whether a model was calibrated with a piece of the text that it is measured on, which flatters its figures."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

WORDS = 12  # so many words in a row are no chance: GPT-3's authors looked for 13 that training and test texts share
SHOWN = 60  # characters of a shared run in a warning
WORD = re.compile(r"\w+")


def shared_run(samples: Iterable[str], text: str, words: int = WORDS) -> str | None:
    """Returns the first `words` words in a row of the text that stand in one of the samples too, or None.

    Case, punctuation and spaces do not count, because tokenizers change spaces.
    """
    known = {run for sample in samples for run in runs_of(sample, words)}
    for i, run in enumerate(runs_of(text, words)):
        if run in known:
            found = list(islice(WORD.finditer(text), i, i + words))
            return " ".join(text[found[0].start() : found[-1].end()].split())
    return None


def runs_of(text: str, words: int) -> Iterator[tuple[str, ...]]:
    """Yields every `words` words in a row of a text."""
    every = [word.lower() for word in WORD.findall(text)]  # not of text.lower(), which splits a word with a Turkish I
    return zip(*(islice(every, i, None) for i in range(words)), strict=False)


def warning(dataset: str, run: str) -> str:
    """Returns the line to show when the samples share this run of words with the evaluation text."""
    short = run if len(run) <= SHOWN else f"{run[: SHOWN - 3]}..."
    return (
        f"warning: dataset={dataset}: it shares a run of {WORDS} words or more with the calibration text ({short!r}), "
        f"so that its figures flatter the method; give another dataset or calibration"
    )
