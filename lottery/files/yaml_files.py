"""Reads the YAML files that a person writes: a study, an allocation."""

from pathlib import Path
from typing import Any

import yaml

from lottery.errors import InputError


class Loader(yaml.BaseLoader):
    """A YAML loader that makes only texts, lists and mappings, and refuses a key that appears twice in a mapping.

    YAML itself would take the last of the two.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(problem=f"the key {twice[0]!r} appears twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> Any:
    """Returns what a YAML file holds. Raises InputError, which begins with `what`, for a file that is no YAML.

    Every scalar stays a text: YAML would read `2:4` as a number of seconds and `no` as false.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise InputError(f"{what}: not readable as YAML: {' '.join(str(e).split())[:200]}") from e
