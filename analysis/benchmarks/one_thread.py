"""Runs a part of the benchmarks in a process of one thread, and counts CPU seconds, which other work on the machine changes
little."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def has_one_thread() -> bool:
    """Returns whether this process was started with one thread: libraries read these variables when they are imported."""
    return all(os.environ.get(name) == "1" for name in ONE_THREAD)


def in_one_thread(part: str, rounds: int) -> dict[str, Any]:
    """Runs a part in a process of one thread, and returns what it found."""
    command = [sys.executable, str(Path(__file__).parent.parent / "bench.py"), part, "--rounds", str(rounds)]
    with subprocess.Popen(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if not line.startswith("{"):
                click.echo(line, nl=False)
    if process.returncode:
        raise click.ClickException(f"{part}: its process ended with {process.returncode}")
    return json.loads(lines[-1])[part]


@contextmanager
def new_home() -> Iterator[Path]:
    """Within the block of code LOTTERY_HOME is an empty folder."""
    before = os.environ.get("LOTTERY_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOTTERY_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("LOTTERY_HOME")
            os.environ.update({} if before is None else {"LOTTERY_HOME": before})


def cpu_seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
