"""What one parameter takes: functions that check the text of a command line, or a Python value, and return the value."""

import math
import re
from collections.abc import Callable
from dataclasses import field
from typing import Any

from lottery.errors import InputError, did_you_mean


def parameter(default: Any, help: str, parse: Callable[[str, Any], Any], values: str) -> Any:
    return field(default=default, metadata={"help": help, "parse": parse, "values": values})


def one_of(*words: str) -> dict[str, Any]:
    def parse(name: str, value: Any) -> str:
        word = str(value)
        if word not in words:
            raise InputError(f"{name}={word}: {did_you_mean(word, words)}")
        return word

    return {"parse": parse, "values": ", ".join(words)}


def nonempty_text(values: str) -> dict[str, Any]:
    def parse(name: str, value: Any) -> str:
        if not (word := str(value).strip()):
            raise InputError(f"{name} is empty: give {values}")
        return word

    return {"parse": parse, "values": values}


def float_range(low: float, high: float) -> dict[str, Any]:
    def parse(name: str, value: Any) -> float:
        try:
            x = float(value)
        except (TypeError, ValueError):
            x = math.nan
        if not low <= x <= high:
            percent = str(value).strip().rstrip("%")
            meant = f" ({percent}% is {float(percent) / 100:g})" if high == 1 and re.fullmatch(r"\d+", percent) else ""
            raise InputError(f"{name}={value}: give a number from {low:g} to {high:g}{meant}")
        return x

    return {"parse": parse, "values": f"{low:g} to {high:g}"}


def int_range(low: int, *, word: str | None = None) -> dict[str, Any]:
    """Takes a whole number that is at least `low`, or the word `word`."""

    def parse(name: str, value: Any) -> int | str:
        if word is not None and str(value) == word:
            return word
        try:
            x = int(str(value))
        except ValueError:
            x = low - 1
        if not low <= x < 2**63:
            raise InputError(f"{name}={value}: give a whole number from {low}{f', or {word}' if word else ''}")
        return x

    values = f"{low} and up"
    return {"parse": parse, "values": f"{word}, or {values}" if word else values}


OWL = (5.0, 0.08)  # the M and LAMBDA with which owl's authors prune LLaMA-7B to 70%


def owl_numbers(word: str) -> tuple[float, float] | None:
    """Returns M and LAMBDA of `owl` or `owl:M:LAMBDA`, None for any other text, and for numbers that cannot be used."""
    if word == "owl":
        return OWL
    try:
        name, m, width = word.split(":")
        numbers = float(m), float(width)
    except ValueError:
        return None
    usable = name == "owl" and 0 < numbers[0] < math.inf and 0 < numbers[1] <= 0.5
    return numbers if usable else None


def parse_allocation(name: str, value: Any) -> str:
    word = str(value).strip()
    if word in ("uniform", "alpha") or word.lower().endswith((".yaml", ".yml")):
        return word
    if numbers := owl_numbers(word):
        return "owl" if numbers == OWL else "owl:{:g}:{:g}".format(*numbers)
    if word.startswith("owl"):
        raise InputError(
            f"{name}={word}: give owl:M:LAMBDA with M above 0 and LAMBDA above 0 up to 0.5, as in owl:5:0.08"
        )
    raise InputError(f"{name}={word}: {did_you_mean(word, ('uniform', 'owl', 'alpha'))}; or give a .yaml file")
