"""The hub's client, as its tests call it."""

from collections.abc import Callable
from typing import Any

import pytest

from lottery.models.hub import fetch

SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt")


def line(error: type[Exception], *says: str, call: Callable[[], Any] = lambda: fetch("org/name", SMALL)) -> str:
    """The one line that the call ends with."""
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and said.startswith(("model=org/name", "dataset=wikitext2")), said
    for word in says:
        assert word in said, said
    return said
