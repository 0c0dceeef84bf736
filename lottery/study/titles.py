"""This file tells tickets apart whose titles are the same."""

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from lottery.spec import FIXING


def tell_apart(tickets: Sequence[tuple[Hashable, str, Mapping[str, Any]]]) -> list[str]:
    """Returns a title for each (group, title, parameters). Within a group, titles that are the same are followed by the
    parameters that differ, such as `storage=mask`."""
    alike: dict[tuple[Hashable, str], list[Mapping[str, Any]]] = {}
    for group, title, params in tickets:
        alike.setdefault((group, title), []).append(params)
    differing = {
        key: [name for name in FIXING if len({str(params.get(name)) for params in members}) > 1]
        for key, members in alike.items()
    }
    return [
        " ".join([title, *(f"{name}={plain(params.get(name))}" for name in differing[group, title])])
        for group, title, params in tickets
    ]


def plain(value: Any) -> str:
    """Returns a value as it was typed: a column of numbers makes 1.0 of 1."""
    return re.sub(r"\.0$", "", str(value))
