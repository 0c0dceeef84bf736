"""Small files that anybody may have written are read here; a defect of one becomes one line for the user."""

import json
from pathlib import Path
from typing import Any

from lottery.errors import InputError


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text holds. Raises ValueError for a text that is none, or that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises InputError, naming the file, when there is none."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"{path}: there is no such file") from e
    except (ValueError, OSError) as e:
        raise InputError(f"{path}: it is not readable as JSON ({e})") from e
    if not isinstance(content, dict):
        raise InputError(f"{path}: it does not hold a JSON object")
    return content


def check_file_name(name: str, where: Path) -> str:
    """Returns a file name that was read from the file `where`. Raises InputError unless it names something in one and
    the same folder."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(f"{where}: it names the file {name!r}, which lies outside of its folder")
    return name
