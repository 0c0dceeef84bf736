"""Runs of words that a calibration text and an evaluation text share."""

import re

from hypothesis import given
from hypothesis import strategies as st

from lottery.models.texts import BUILTIN_TEXT
from lottery.pruning.overlap import shared_run, warning

TEXT = BUILTIN_TEXT.read_text(encoding="utf-8")
WORDS = list(re.finditer(r"\w+", TEXT))


def piece(first: int, words: int) -> str:
    return TEXT[WORDS[first].start() : WORDS[first + words - 1].end()]


def test_twelve_words_are_found_and_eleven_are_not() -> None:
    apart = "Nothing of this stands in the other text. "
    assert shared_run([apart * 20], TEXT) is None
    assert shared_run([apart, apart + piece(5000, 11)], TEXT) is None
    assert shared_run([apart, apart + piece(5000, 12) + " or not"], TEXT) == " ".join(piece(5000, 12).split())
    # the first of the text, however the samples are ordered
    assert shared_run([piece(5000, 300), piece(900, 40)], TEXT) == " ".join(piece(900, 12).split())
    assert shared_run([piece(5000, 6), piece(5006, 6)], TEXT) is None  # a run does not go from sample to sample


def test_spaces_case_and_punctuation_do_not_count() -> None:
    changed = re.sub(r"\W+", " , ", piece(700, 12)).upper()
    assert shared_run([changed], TEXT) == " ".join(piece(700, 12).split())
    assert shared_run(["İki bir üç"], "bir İki, bir üç dört", 3) == "İki, bir üç"


words_of_few_letters = st.text("ab .İ", max_size=60)


def slow(samples: list[str], text: str, words: int) -> bool:
    def split(text: str) -> list[str]:
        return [word.lower() for word in re.findall(r"\w+", text)]

    measured = split(text)
    for sample in map(split, samples):
        for i in range(len(sample) - words + 1):
            for j in range(len(measured) - words + 1):
                if sample[i : i + words] == measured[j : j + words]:
                    return True
    return False


@given(st.lists(words_of_few_letters, max_size=3), words_of_few_letters, st.integers(1, 5))
def test_as_a_comparison_of_everything_with_everything(samples: list[str], text: str, words: int) -> None:
    run = shared_run(samples, text, words)
    assert (run is not None) == slow(samples, text, words)
    if run is not None:
        assert len(re.findall(r"\w+", run)) == words and slow(samples, run, words)


def test_the_warning_is_one_line_and_shows_the_beginning() -> None:
    line = warning("builtin", "the first " * 12)
    assert "dataset=builtin" in line and "\n" not in line
    assert "('the first the first" in line and "...')" in line and len(line) < 250
