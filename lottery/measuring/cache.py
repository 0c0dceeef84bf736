"""What the tickets of one process have in common: opened, tokenized and measured once."""

from collections.abc import Callable, Hashable
from typing import Any


class Cache:
    """One ticket alone begins with an empty one; a study hands the same to all of its tickets."""

    def __init__(self) -> None:
        self.values: dict[Hashable, Any] = {}

    def get_or_compute(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time that it was called for `key`."""
        if key not in self.values:
            self.values[key] = make()
        return self.values[key]
