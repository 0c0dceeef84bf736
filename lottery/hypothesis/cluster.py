"""This file submits a hypothesis to a Slurm cluster: one task per training, and an array for each stage.

Rounds wait for one another; seeds and arms do not. A task whose forerunner failed makes what it needs itself.
"""

import json
from dataclasses import replace
from pathlib import Path

from lottery.files.atomic import atomic_write
from lottery.files.home import home, make_folder, resolve_path
from lottery.hypothesis.design import Hypothesis
from lottery.hypothesis.lab import Lab, open_lab
from lottery.hypothesis.run import open_run
from lottery.hypothesis.tasks import Task
from lottery.registry import store
from lottery.study.slurm import SlurmJob, SlurmOptions, Stage, check_stages, submit_stages

COMMAND = "hypothesis"


def for_tasks(hypothesis: Hypothesis, options: SlurmOptions) -> Hypothesis:
    """Returns the hypothesis as its tasks read it, in any folder and on any node: with the text's whole path, and on the
    device that each task asks Slurm for."""
    path = resolve_path(hypothesis.text, "text")
    device = hypothesis.device if hypothesis.device != "auto" else "cuda" if options.gpus else "cpu"
    return replace(hypothesis, text=str(path) if path.is_file() else hypothesis.text, device=device)


def stages_of(tasks: list[Task]) -> list[Stage]:
    """Returns the arrays of the tasks, in order, and the report.

    What other trainings start from has an array of its own in each stage (`chain-2` holds tasks of `training-2`), so that
    rounds wait for rounds alone. Lines wait for all trainings of the stage before.
    """
    needed = {name for task in tasks if task.kind != "line" for name in task.needs}
    found: list[Stage] = []
    chain: tuple[str, ...] = ()
    every: tuple[str, ...] = ()
    for stage in sorted({task.stage for task in tasks}):
        here = [task for task in tasks if task.stage == stage]
        arrays = {
            f"states-{stage}": (f"states-{stage}", [t for t in here if t.kind == "states"], chain),
            f"chain-{stage}": (f"training-{stage}", [t for t in here if t.kind == "training" and t.name in needed], chain),
            f"training-{stage}": (
                f"training-{stage}", [t for t in here if t.kind == "training" and t.name not in needed], chain,
            ),
            f"line-{stage}": (f"line-{stage}", [t for t in here if t.kind == "line"], every),
        }  # fmt: skip
        made = {name: array for name, array in arrays.items() if array[1]}
        for name, (what, of, waits) in made.items():
            indices = tuple(int(task.name.rpartition("-")[2]) for task in of)
            found.append(Stage(name, what, indices, tuple(("afterany", other) for other in waits)))
        chain = tuple(n for n in made if n.startswith(("states", "chain"))) or chain
        every = tuple(n for n in made if not n.startswith("line")) or every
    return [*found, Stage("report", "report", after=tuple(("afterany", stage.name) for stage in found))]


def submit(hypothesis: Hypothesis, options: SlurmOptions, command: str, dry_run: bool) -> tuple[Lab, list[SlurmJob]]:
    """Submits every task that is not done, and the report. Raises InputError or MachineError if Slurm refuses; then
    nothing is submitted."""
    lab = open_lab(for_tasks(hypothesis, options), here=False)
    left = [task for task in lab.tasks if not task.is_done(lab.outputs)]
    stages, file = stages_of(left), plan_file(lab)
    if dry_run:
        return lab, submit_stages(file, stages, options, hypothesis.name, COMMAND, dry_run=True)
    check_stages(file, stages, options, hypothesis.name, COMMAND)
    make_folder(file.parent, "LOTTERY_HOME")
    atomic_write(file, (json.dumps(lab.hypothesis.record(), indent=1) + "\n").encode())
    with open_run(store.connect(), lab, {"command": command}) as run:
        jobs = submit_stages(file, stages, options, hypothesis.name, COMMAND)
        run.finish("SCHEDULED")
    return lab, jobs


def plan_file(lab: Lab) -> Path:
    """Returns the file from which the tasks read the hypothesis. Each tracking store has its own."""
    return home() / "hypotheses" / f"{lab.id}-{store.store_digest()[:8]}" / "hypothesis.json"
