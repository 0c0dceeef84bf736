"""The folder of a report: it holds nothing else, and its page is written last."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from lottery.errors import InputError
from lottery.files.atomic import atomic_write
from lottery.files.home import make_folder

SUMMARY = "report.json"  # a folder with this file in it is a report
REPORT_FILES = ("index.html", SUMMARY, "figures", "tables")


def check_folder(folder: Path, out: str | Path) -> None:
    """Raises InputError for a folder that holds anything else than an earlier report, so that no such file is
    overwritten."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={out}: it is a file; give a folder")
    present = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(name for name in present if name not in REPORT_FILES and not name.startswith("."))
    if others or (present and previous_files(folder) is None):
        raise InputError(
            f"out={out}: it holds {', '.join((others or sorted(present))[:3])}, no report; give a new folder"
        )


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes each file atomically, the page last. Deletes the figures and tables of an earlier report, and nothing
    else."""
    before = previous_files(folder) or set()
    for name in sorted(files, key=lambda n: (n == "index.html", n != SUMMARY, n)):
        path = make_folder((folder / name).parent, "out") / Path(name).name
        atomic_write(path, files[name])
    for name in before - files.keys():
        (folder / name).unlink(missing_ok=True)


def previous_files(folder: Path) -> set[str] | None:
    """Returns the figures and tables that the folder's report.json lists, or None if the folder holds no report.
    Anybody can have edited that file, so only names of the expected form count."""
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
        return {n for part in ("figures", "tables") for n in summary[part] if re.fullmatch(rf"{part}/[\w.-]+", n)}
    except (OSError, ValueError, TypeError, KeyError):
        return None
