"""Keeps what the tickets of one process share, so that it is opened, tokenized and measured once."""

from collections.abc import Callable, Hashable
from typing import Any


class Cache:
    """A store of results by key. A single ticket begins with an empty cache; all tickets of a study share one."""

    def __init__(self) -> None:
        self.values: dict[Hashable, Any] = {}

    def get_or_compute(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns the value of `key`, which `make` computes the first time."""
        if key not in self.values:
            self.values[key] = make()
        return self.values[key]
