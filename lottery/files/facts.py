"""Facts that follow from the content of small files, and from the versions of the libraries that looked at them.

To find one takes a second of imports, so it is found once and kept in LOTTERY_HOME.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lottery.errors import InputError, MachineError
from lottery.files.atomic import atomic_write
from lottery.files.hashes import file_sha256
from lottery.files.home import home, make_folder

LIBRARIES = ("torch", "transformers", "tokenizers")


def find_fact(what: str, files: Sequence[Path], more: object, find: Callable[[], Any]) -> Any:
    """Returns the JSON value that `find` returns, or the one that it returned for the same files before.

    `what` and `more` say, beside the files, what the value depends on. An error of `find` is raised and not kept.
    """
    about = {path.name: file_sha256(path) for path in files if path.is_file()}
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    key = hashlib.sha256(json.dumps([what, about, versions, more], sort_keys=True).encode()).hexdigest()
    folder = home() / "facts"
    try:
        return json.loads((folder / key).read_text())
    except (OSError, ValueError):
        value = find()
    with contextlib.suppress(OSError, InputError, MachineError):  # it is then found again the next time
        make_folder(folder, "LOTTERY_HOME")
        atomic_write(folder / key, json.dumps(value).encode())
    return value
