"""What a person sees on stderr during the work.

On a terminal each stage shows a bar. Elsewhere each stage prints a plain line, and another one every PERIOD_S seconds.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

PERIOD_S = 30.0  # seconds between two lines of one stage


class Advance(Protocol):
    """A function that counts `amount` more as done, and shows `note` next to the count."""

    def __call__(self, amount: float = 1, note: str = "") -> None: ...


def quiet_libraries() -> None:
    """Switches off progress bars, advice and telemetry of the libraries. It must run before they are imported."""
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_VERBOSITY": "error",
        "MLFLOW_DISABLE_TELEMETRY": "true",  # its thread changes os.environ while other code reads it
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for the output of --json
        "MLFLOW_UV_AUTO_DETECT": "false",  # otherwise every model receives the uv.lock of the working directory
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)


_listener: Callable[[str], None] | None = None


@contextmanager
def redirect_progress(listener: Callable[[str], None]) -> Iterator[None]:
    """Within the block the lines of the stages go to `listener`, which shows them in its own way."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def say(line: str) -> None:
    """Prints one line on stderr."""
    print(line, file=sys.stderr, flush=True)


def progress_line(line: str) -> None:
    """Reports a stage that has no bar: prints the line, or hands it to the listener of `redirect_progress`."""
    if _listener is not None:
        _listener(line)
    else:
        say(line)


@contextmanager
def overall_bar() -> Iterator[Callable[[float, str], None]]:
    """Shows one bar on a terminal for all stages of the block, whose lines it shows too.

    Yields `update(share, note)`, where `share` is what is done, from 0 to 1. The bar is drawn when something happens and
    has no thread, which would disturb the measurements of speed.
    """
    if _listener is not None or not sys.stderr.isatty():
        yield lambda share, note: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as shown:
        task, drawn = shown.add_task("", total=1.0), 0.0

        def draw(**changes: Any) -> None:
            nonlocal drawn
            shown.update(task, **changes)
            if "description" in changes or time.monotonic() - drawn > 0.1:
                shown.refresh()
                drawn = time.monotonic()

        with redirect_progress(lambda line: draw(description=line)):
            yield lambda share, note: draw(completed=share)


@contextmanager
def progress_bar(title: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
    """Shows one stage of the work. Yields `advance(amount, note)`; `unit="bytes"` shows megabytes and MB/s."""
    if _listener is not None:
        _listener(title)
        yield listener_advance(title, total, unit, _listener)
        return
    if not sys.stderr.isatty():
        say(title)
        yield printing_advance(title, total, unit)
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


def listener_advance(title: str, total: float | None, unit: str, listener: Callable[[str], None]) -> Advance:
    """Returns an `advance` that reports the progress of a stage to a listener, at most twice a second."""
    done, last, lock = 0.0, time.monotonic(), threading.Lock()

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal done, last
        with lock:
            done += amount
            now = time.monotonic()
            if now - last < 0.5:
                return
            last = now
        count = f"{done / total:.0%}" if total else f"{done:,.0f} {unit}".rstrip()
        listener(f"{title}: {count}{f', {note}' if note else ''}")

    return advance


def printing_advance(title: str, total: float | None, unit: str) -> Advance:
    """Returns an `advance` that prints progress, rate and remaining time of a stage, at most every PERIOD_S seconds."""
    begin = last = time.monotonic()
    done, lock = 0.0, threading.Lock()

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal done, last
        with lock:
            done += amount
            now = time.monotonic()
            if now - last < PERIOD_S:
                return
            last = now
        rate = done / (now - begin)
        if unit == "bytes":
            parts = [f"{done / 1e9:.2f}{f' of {total / 1e9:.2f}' if total else ''} GB", f"{rate / 1e6:,.0f} MB/s"]
        else:
            parts = [f"{done:,.0f}{f' of {total:,.0f}' if total else ''}"]
        if total and rate:
            parts.append(f"{(total - done) / rate:,.0f} s left")
        say(f"{title}: {', '.join([*parts, note] if note else parts)}")

    return advance
