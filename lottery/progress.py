"""What a person sees on stderr while work goes on: a bar on a terminal, one plain line a stage otherwise."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, amount: float = 1, note: str = "") -> None: ...


def quiet_libraries() -> None:
    """Before they are imported: no progress bars, advice or telemetry of theirs between our lines."""
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_VERBOSITY": "error",
        "MLFLOW_DISABLE_TELEMETRY": "true",  # its thread changes os.environ under the feet of others
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to --json
        "MLFLOW_UV_AUTO_DETECT": "false",  # else a uv.lock of the working directory lands in every model
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def stage(title: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
    """One step of the work. Yields `advance(amount, note)`; `unit="bytes"` shows megabytes and their rate."""
    if not sys.stderr.isatty():
        say(title)
        yield lambda amount=1, note="": None
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    count = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (BarColumn(), *count, TimeRemainingColumn()) if total else ()
    shown = Progress(
        TextColumn("{task.description}"), *columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)
    )
    with shown:
        task = shown.add_task(title, total=total, note="")
        yield lambda amount=1, note="": shown.update(task, advance=amount, note=note)
