"""Stories: the same on every machine, no two alike, and true to what they say."""

import hashlib
import re

import pytest

from lottery.training.stories import END, write_stories
from lottery.training.story_words import ENDS, NUMBERS

WORD = "([a-z ]+?)"


@pytest.fixture(scope="module")
def text() -> str:
    return write_stories(7, 1_500_000)


def test_a_seed_gives_the_same_stories_everywhere() -> None:
    story = write_stories(1, 100_000)
    assert hashlib.sha256(story.encode()).hexdigest()[:16] == "f842224fa642ba2c"
    assert story.startswith("Near the pier lived Casus, a greedy crab. Dulo, a merry turtle, often visited Casus.")
    assert write_stories(1, 0) == "" and write_stories(2, 1).count(END) == 0


def test_more_characters_only_add_stories() -> None:
    short, long = write_stories(3, 5_000), write_stories(3, 9_000)
    assert long.startswith(short + END) and 9_000 <= len(long) + len(END) < 12_000


def test_no_story_is_told_twice_and_no_two_streams_share_one(text: str) -> None:
    others = [write_stories(seed, 1_500_000).split(END) for seed in (1, 2, 3)]
    every = [*text.split(END), *(story for stories in others for story in stories)]
    assert len(set(every)) == len(every) > 5000


def test_sentences_are_english(text: str) -> None:
    text = text.replace(END, "\n")
    for wrong in (r"[.?!] [a-z]", r"\ba [aeiou]", r"[{}\[\]|]", r"  ", r" [.,]", r"\b(\w+) \1\b", r"\.[A-Za-z]"):
        found = re.search(wrong, text)
        assert not found, text[found.start() - 60 : found.end() + 60]


def test_pronouns_agree_with_names(text: str) -> None:
    found = re.findall(r"(\w+) (?:put|hid|left|forgot|had lost) (his|her) ", text)
    assert len(found) > 500
    for name, pronoun in found:
        assert name.endswith(tuple(ENDS["he" if pronoun == "his" else "she"])), (name, pronoun)


def test_verbs_agree_with_the_first_noun(text: str) -> None:
    found = re.findall(r"The \w+ ([a-z ]+?) (?:near|behind|beside) the [a-z ]+? (was|were|has been|have been) ", text)
    assert len(found) > 100
    for noun, verb in found:
        assert (noun.endswith("s") or noun == "deer mice") == (verb in ("were", "have been")), (noun, verb)


def test_numbers_add_up(text: str) -> None:
    given = re.findall(rf"had (\w+) {WORD}\. (\w+) gave (\w+) (?:of them )?to \w+, so \3 had (\w+) left", text)
    more = re.findall(rf"had (\w+) {WORD}\. Then (\w+) found (\w+) more, and (?:now|so) \w+ had (\w+)\.", text)
    assert len(given) > 50 and len(more) > 50
    for found, sign in ((given, -1), (more, 1)):
        for before, _, _, change, after in found:
            assert NUMBERS.index(before) + sign * NUMBERS.index(change) == NUMBERS.index(after)


def test_things_are_found_where_they_were_put_last(text: str) -> None:
    hidden = rf"(?:In|Under|Behind) the {WORD} at the {WORD}, (\w+) hid a {WORD}\."
    found = re.findall(
        rf"{hidden} \3 (?:went|ran) to the {WORD}, looked into the {WORD} and took out the {WORD}\.", text
    )
    assert len(found) > 50
    for box, spot, _, thing, where, into, taken in found:
        assert (box, spot, thing) == (into, where, taken)
    moved = re.findall(
        rf"\w+ (?:moved|put) the {WORD} (?:in)?to the {WORD} at the {WORD}\."
        rf' "Where is (?:my|the) {WORD}\?" asked \w+\. "(?:In|Look in) the {WORD}," said \w+\. "At the {WORD}\."',
        text,
    )
    assert len(moved) > 50 and all(a[:3] == (a[3], a[4], a[5]) for a in moved)
