"""What a person sees on stderr while work goes on: a bar on a terminal; otherwise a plain line a stage, and more of them
as time goes by."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

PERIOD_S = 30.0  # between two lines of one stage


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


_listener: Callable[[str], None] | None = None


@contextmanager
def redirect_progress(listener: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile the stages of the work are told to `listener`, which shows them in its own way, instead of printed."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def progress_line(line: str) -> None:
    """A stage that has no bar: a line, or what `redirect_progress` makes of it."""
    if _listener is not None:
        _listener(line)
    else:
        say(line)


@contextmanager
def progress_bar(title: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
    """One step of the work. Yields `advance(amount, note)`; `unit="bytes"` shows megabytes and their rate."""
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
    """How far a stage is, for a listener: twice a second at most."""
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
    """What says, now and then, how far a stage is, how fast and for how long still."""
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
