"""The part `study` compares `lottery study locate` with the same tickets as so many main jobs."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.timing import print_ratio


def bench_study() -> dict[str, Any]:
    """The dense baseline is in the store already when the first timed main job starts, as it is for nineteen of
    twenty."""
    from lottery.measuring.cache import Cache
    from lottery.study.design import read_study
    from lottery.study.planning import make_plan

    tickets = make_plan(read_study("locate"), Cache()).tickets
    with tempfile.TemporaryDirectory() as folder:

        def seconds(store: str, *arguments: str) -> float:
            place = Path(folder) / store
            place.mkdir(exist_ok=True)
            environment = os.environ | {
                "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
                "LOTTERY_HOME": str(place / "home"),
                "NUMBA_CACHE_DIR": str(Path(folder) / "kernels"),
            }
            command = [sys.executable, "-m", "lottery", *arguments]
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment, cwd=place)
            return time.perf_counter() - begin

        seconds("jobs", "prune", "--target", "q_proj")  # makes the kernels, the store's tables, the dense baseline
        before = [main_job_seconds(seconds, ticket) for ticket in tickets[0::6]]
        study = seconds("study", "study", "locate")
        after = [main_job_seconds(seconds, ticket) for ticket in tickets[3::6]]
    one = statistics.mean([*before, *after])
    count = len(tickets) + 1
    click.echo(
        f"study: locate on the embedded model, {count} runs; {len(before) + len(after)} main jobs, before and after it"
    )
    print_ratio(f"{count} main jobs, one after the other", count * one, count * one, "main jobs")
    print_ratio("lottery study locate", study, count * one, "main jobs")
    return {"study_to_main_jobs": study / (count * one)}


def main_job_seconds(seconds: Callable[..., float], ticket: Any) -> float:
    return seconds("jobs", "prune", "--target", ticket.spec.target, "--sparsity", str(ticket.spec.sparsity))
