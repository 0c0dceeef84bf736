"""Tells the story of a hypothesis: text, trainings, lines, claims, tickets, report. Read `run` first."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lottery.errors import InputError, MachineError, did_you_mean
from lottery.files.home import home
from lottery.hypothesis.lab import Lab
from lottery.hypothesis.record import collect
from lottery.hypothesis.recorder import Recorder
from lottery.hypothesis.runner import Runner
from lottery.hypothesis.tasks import Task
from lottery.hypothesis.tickets import register_winners
from lottery.progress import progress_bar, say
from lottery.registry import recovery, runs, store, trainings
from lottery.spec import json_sha256
from lottery.training.network import Network
from lottery.training.recipe import Training

FAILED = ("failed", "missing")  # outcomes that the same command may mend; a divergence is a result


@dataclass(frozen=True)
class Result:
    """What a hypothesis gave: its record, and its run in MLflow."""

    record: dict[str, Any]
    run_id: str
    page: str | None
    failed: list[dict[str, Any]] = field(default_factory=list)


def run(lab: Lab, jobs: int, tags: Mapping[str, str] | None = None) -> Result:
    """Makes everything that a hypothesis asks for; what exists is found, not made again.

    `jobs` trainings run at a time. Raises MachineError if the tracking store stops answering; the same command then
    goes on from there.
    """
    client = store.connect()
    recovery.close_killed_runs(client)
    with open_run(client, lab, tags) as run:
        trainings.delete_unfinished(client, run.id)
        recorder = Recorder(client, lab, run.id)
        if before := sum(lab.outputs.has(training) for training in lab.plan.trainings):
            say(f"{before} of {len(lab.plan.trainings)} trainings were made before")
        total = sum(task.steps for task in lab.tasks)
        with progress_bar(f"{lab.hypothesis.name}: {len(lab.plan.trainings)} trainings", total, "steps") as advance:
            Runner(lab.tasks, lab.outputs, recorder.ended).run(lab.corpus_folder, jobs, advance)
        return log_result(run, lab, recorder, (tags or {}).get("command", ""))


def make_part(lab: Lab, name: str) -> None:
    """Makes one task, and whatever it needs that is not there; this is what one task of a cluster does.

    Raises InputError for an unknown task, and if the store does not hold the hypothesis' run.
    """
    tasks = {task.name: task for task in lab.tasks}
    if name not in tasks:
        raise InputError(f"part={name}: {did_you_mean(name, [*tasks, 'report'])}")
    client = store.connect()
    opened = trainings.find_hypothesis_run(client, lab.id)
    if opened is None:
        raise InputError(f"part={name}: the run of this hypothesis is not in {store.store_name()}; submit it again")
    todo = with_needs(tasks, name)
    planned = [task.what for task in todo if task.kind == "training" and isinstance(task.what, Training)]
    recorder = Recorder(client, lab, opened.info.run_id, planned)
    Runner(todo, lab.outputs, recorder.ended).run(lab.corpus_folder, 1, lambda amount=1, note="": None)
    if failed := [reason for outcome, reason in recorder.reasons.values() if outcome in FAILED]:
        raise MachineError(failed[0])


def finalize(lab: Lab) -> Result:
    """Ends the run of a hypothesis whose tasks other processes made."""
    client = store.connect()
    recovery.close_killed_runs(client)
    with open_run(client, lab) as run:
        trainings.delete_unfinished(client, run.id)
        command = client.get_run(run.id).data.tags.get("command", "")
        return log_result(run, lab, Recorder(client, lab, run.id), command)


def with_needs(tasks: Mapping[str, Task], name: str) -> list[Task]:
    """Returns a task after everything that it needs."""
    found: dict[str, Task] = {}

    def add(task: Task) -> None:
        for need in task.needs:
            add(tasks[need])
        found[task.name] = task

    add(tasks[name])
    return list(found.values())


@contextmanager
def open_run(client: store.Client, lab: Lab, more: Mapping[str, str] | None = None) -> Iterator[runs.Run]:
    """Opens the run of the hypothesis: that which `mlflow run` opened, else the one that it continues, else a new one."""
    h = lab.hypothesis
    before = trainings.find_hypothesis_run(client, lab.id)
    tags = {"kind": "hypothesis", "study": h.name, "study_id": lab.id, **(more or {})}
    params = {"preset": h.name, "text": h.text, "seed": str(h.seed), "seeds": str(h.seeds), "device": h.device}
    resume = runs.pop_run_id() or (before.info.run_id if before else None)
    id = json_sha256([lab.id, store.store_digest()])[:16]
    with runs.open_run(
        client, id, f"hypothesis {h.name} {lab.corpus.name}", params, tags, resume=resume, adopt=False
    ) as run:
        run.log_files({"hypothesis.yaml": h.yaml()})
        yield run


def log_result(run: runs.Run, lab: Lab, recorder: Recorder, command: str) -> Result:
    """Collects the record, logs it, and ends the run; as FAILED if a training failed or is missing."""
    network = Network(lab.plan.setup.shape)
    record = collect(
        lab.plan, lab.outputs, lab.corpus, network.prunable, network.size, recorder.reasons, recorder.run_ids
    )
    record["command"] = command or f"lottery hypothesis --preset {lab.hypothesis.name}"
    record["tickets"] = register_winners(lab, run.id, record)
    run.log_files({"hypothesis.json": record})
    failed = [t for t in record["trainings"] if t["outcome"] in FAILED]
    metrics = {"trainings": float(len(record["trainings"]) - len(failed)), "failed": float(len(failed))}
    run.log_metrics(metrics, None, None, int(time.time() * 1000))
    if failed:
        run.set_tags(
            {
                "outcome": "failed",
                "reason": f"{len(failed)} of {len(record['trainings'])} trainings failed or are missing",
            }
        )
        run.finish("FAILED")
    return Result(record, run.id, run.page, failed)


def log_report(result: Result, folder: Path) -> None:
    """Logs the report's files to the run of the hypothesis. If the store refuses them, a line says so: they are on disk."""
    try:
        store.connect().log_artifacts(result.run_id, str(folder), "report")
    except (*store.STORE_ERRORS, MachineError) as e:
        say(f"warning: {store.store_name()} did not take the report ({store.first_line(e)}); it is in {folder}")


def default_jobs(device: str) -> int:
    """Returns how many trainings run at a time: one per core, or one on a GPU."""
    if device == "cuda":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report_folder(lab: Lab) -> Path:
    """Returns the folder of a hypothesis' report. Each tracking store has its own."""
    return home() / "hypotheses" / f"{lab.id}-{store.store_digest()[:8]}" / "report"


def joined_folder(record: Mapping[str, Any]) -> Path:
    """Returns the folder of the report of several runs that were joined. Other runs have another folder."""
    id = json_sha256([record["name"], [t["run_id"] for t in record["trainings"]]])[:12]
    return home() / "hypotheses" / f"joined-{id}" / "report"
