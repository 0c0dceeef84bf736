"""Endless small English stories from a seed: a text to train on that needs nothing from outside.

A story keeps a small world: who is there, what each one has, where things lie, what happened. What is said later
follows from it, often sentences later, so that there is more to learn than which word follows which: names and kinds
that come back, pronouns and verbs that agree, sums, hidden things found again, causes and their effects, endings that
depend on the way there. The words come from the setting, which is never named.

Every choice is made with `random.Random.random`: Python promises that a seed gives the same numbers in every version,
and does not promise it of `choice` and `shuffle`; NumPy promises nothing of the kind.
"""

import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

from lottery.training import story_words as words

END = "<|endoftext|>"  # between two stories
Draw = Callable[[], float]


def plural(noun: str) -> str:
    return words.PLURALS.get(noun, noun + "s")


SKEW = 1.3  # above 1, the first words of a list are more frequent
PERSON = ("", "he", "him", "his", "He", "His", "KIND")  # the slots of a person begin with one letter and end so
TRAITS = list(words.TRAITS)
SETTINGS = [
    {
        **kinds,
        "foods": [plural(noun) for noun in kinds["food"]],
        "crowds": [plural(noun) for noun in kinds["crowd"]],
        "adj": [adj for pair in zip(kinds["adj"] * 4, words.COMMON, strict=True) for adj in pair],
        "mood": words.MOODS,
        "colour": words.COLOURS,
    }
    for kinds in words.SETTINGS.values()
]


@cache
def variants(template: str) -> list[str]:
    """Returns the texts that a template with alternatives in brackets, `[one|another|]`, stands for."""
    parts = [part.split("|") for part in re.split(r"[\[\]]", template)]
    return [" ".join("".join(choice).split()).replace(" .", ".").replace(" ,", ",") for choice in product(*parts)]


def write_stories(seed: int, characters: int) -> str:
    """Returns whole stories, `characters` long or a little longer. More characters only add stories at the end."""
    draw = random.Random(seed).random
    stories: list[str] = []
    while characters > 0:
        stories.append(Story(draw).tell())
        characters -= len(stories[-1]) + len(END)
    return END.join(stories)


class Story(dict[str, str]):
    """The facts of one story, by the name of their slot. A slot that is no fact gets a new word of the setting."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.setting = SETTINGS[self.below(len(SETTINGS))]
        self.luck = 0  # what happened so far: the ending depends on its sign
        self.last: dict[str, str] = {}  # kind of word -> the one that was drawn last
        self.lines: list[str] = []

    def __missing__(self, kind: str) -> str:
        """Draws a word of that kind, frequent ones first, and not the same one twice running."""
        known = self.setting[kind]
        word = known[int(len(known) * self.draw() ** SKEW)]
        if word == self.last.get(kind):
            word = self.pick(known)
        self.last[kind] = word
        return word

    def below(self, count: int) -> int:
        return int(count * self.draw())

    def pick(self, things: Sequence[str]) -> str:
        return things[int(len(things) * self.draw())]

    def say(self, templates: Sequence[str]) -> None:
        line = self.pick(variants(self.pick(templates))).format_map(self)
        self.lines.append(line[0].upper() + line[1:])

    def tell(self) -> str:
        """Returns the whole story."""
        wished = self.open()
        cause, effect = words.CAUSES[self.below(len(words.CAUSES))]
        self.say([f"{cause}."])
        scenes = [self.count, self.count, self.hide, self.hide, self.pack, self.show, self.walk, self.talk, self.risk]
        for _ in range(3 + self.below(5)):
            for role, person in zip("XY", "AB" if self.draw() < 0.6 else "BA", strict=True):
                self |= {role + form: self[person + form] for form in PERSON}
            scenes[self.below(len(scenes))]()
            if self.draw() < 0.4:
                self.say(words.FILLED if self.draw() < 0.6 else words.SEEN)
        self.say([f"[In the end|Later|Much later], {effect}."])
        if wished:
            self.say(words.GRANTED if self.luck > 0 else words.DENIED)
        self.say(words.ENDINGS[self.luck > 0])
        return " ".join(self.lines)

    def open(self) -> bool:
        """Tells who the story is about. Returns whether the hero has a wish."""
        for person in "AB":
            sex = "she" if self.draw() < 0.5 else "he"
            name = self.pick(words.STARTS) + self.pick(words.MIDDLES) + self.pick(words.ENDS[sex])
            he, him, his = words.FORMS[sex]
            facts = (name, he, him, his, he.capitalize(), his.capitalize(), self["kind"])
            self |= {person + form: fact for form, fact in zip(PERSON, facts, strict=True)}
        self |= {"TRAIT": self.pick(TRAITS), "HOME": self["place"], "GOAL": self["place"], "WISH": self["thing"]}
        self.say(words.OPENINGS)
        self.say(words.FRIENDS)
        wished = self.draw() < 0.5
        if wished:
            self.say(words.WISHES)
        return wished

    def count(self) -> None:
        """Somebody has some of a food, and gives, eats or gets some: the numbers add up."""
        left = 3 + self.below(8)
        self |= {"N": words.NUMBERS[left], "FOODS": self["foods"]}
        self.say(words.COUNTED)
        for _ in range(1 + self.below(3)):
            change = 1 + self.below(min(4, left))
            kind = self.below(3 if left + change < len(words.NUMBERS) else 2)
            left += change if kind == 2 else -change
            self |= {"M": words.NUMBERS[change], "LEFT": words.NUMBERS[left], "WERE": "was" if left == 1 else "were"}
            self.say((words.GIVEN, words.EATEN, words.MORE)[kind])
            self.luck += (1, -1, 1)[kind]
            if not left:
                return
        if self.draw() < 0.6:
            self.say(words.ASKED)

    def hide(self) -> None:
        """Something is put away, perhaps moved, and is wherever it was put last."""
        self |= {"THING": self["thing"], "ADJ": self["adj"], "BOX": self["box"], "SPOT": self["place"]}
        self.say(words.HIDDEN)
        if self.draw() < 0.5:
            self.say(words.FILLED)
        if self.draw() < 0.4:
            self |= {"BOX": self["box"], "SPOT": self["place"]}
            self.say(words.MOVED)
            self.luck -= 2
        self.say(words.WANTED)
        self.luck += 1

    def pack(self) -> None:
        """Three things come back in their order, or in the reverse one."""
        self |= {"P": self["thing"], "Q": self["thing"], "R": self["thing"], "BOX": self["box"]}
        self.say(words.PACKED)
        self.say(words.UNPACKED)

    def show(self) -> None:
        """Two things have colours, which stay, and owners, who may change."""
        self |= {"THING": self["thing"], "TOY": self["thing"], "COLOUR": self["colour"], "HUE": self["colour"]}
        self.say(words.PAINTED)
        self.say(words.SHOWN)

    def walk(self) -> None:
        self |= {"SPOT": self["GOAL"], "GOAL": self["place"]}
        self.say(words.WALKED)
        self.say(words.THERE)

    def talk(self) -> None:
        self |= {"DAY": self.pick(("morning", "evening")), "CROWDS": self["crowds"], "SPOT": self["place"]}
        self.say(words.TALKED)

    def risk(self) -> None:
        """Something happens, and the hero does what such a one does."""
        self.say(words.DANGER)
        self.say([f"{deed}." for deed in words.TRAITS[self["TRAIT"]]])
        self.luck += 1 if self["TRAIT"] in ("brave", "clever", "kind") else -1
