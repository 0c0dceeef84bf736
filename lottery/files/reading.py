"""Small files that anybody may have written: what is wrong with one is said in one line."""

import json
from pathlib import Path
from typing import Any

from lottery.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"{path}: there is no such file") from e
    except (ValueError, OSError) as e:
        raise InputError(f"{path}: not readable as JSON ({e})") from e
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def check_file_name(name: str, where: Path) -> str:
    """A file name out of a file: it must name something in the same folder. Raises InputError otherwise."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(f"{where}: it names the file {name!r}, which lies outside of its folder")
    return name
