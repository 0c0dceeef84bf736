"""This file submits the parts of a study, or of a hypothesis, to a Slurm cluster by sbatch commands: all of them or none."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lottery.errors import InputError, MachineError, did_you_mean
from lottery.files.home import home, make_folder
from lottery.models.targets import format_ranges
from lottery.parameters import int_range, nonempty_text, parameter

ANSWER_S = 120  # seconds that one of Slurm's commands may take
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """The resources that each task asks Slurm for."""

    partition: str = parameter("dgx", "Slurm's partition.", **nonempty_text("a name that `sinfo -s` lists"))
    gpus: int = parameter(1, "GPUs of a task.", **int_range(0))
    cpus: int = parameter(8, "Cores for each GPU (of a task, where gpus=0).", **int_range(1))
    time: str = parameter("0-4:0", "Time limit of a task.", **nonempty_text("as Slurm writes it: 0-4:0, 90, 1:30:00"))
    memory: str = parameter(
        "none", "Memory of a task; none: Slurm's default.", **nonempty_text("none, or as Slurm writes it: 64G")
    )
    concurrent: int | str = parameter("none", "The most tickets or trainings at a time.", **int_range(1, word="none"))
    environment: str = parameter(
        "none",
        "Python of the tasks; none: the one that submits.",
        **nonempty_text("none, a venv's or conda environment's folder, or a conda environment's name"),
    )

    @classmethod
    def parse(cls, **given: Any) -> "SlurmOptions":
        """Returns the options from a command line's words or from Python values. Raises InputError for a wrong value."""
        table = {f.name: f for f in fields(cls)}
        return cls(**{name: table[name].metadata["parse"](name, value) for name, value in given.items()})


@dataclass(frozen=True)
class SlurmJob:
    """One job of a study. `id` is Slurm's number, or None if the job was not submitted."""

    id: str | None
    what: str  # the name of its stage
    command: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.command)


def scripts() -> Path:
    """Returns the folder of the sbatch files: inside the package if that came from a wheel, else in the checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "assets" / "slurm"
    return installed if installed.is_dir() else package.parent / "slurm"


@dataclass(frozen=True)
class Stage:
    """Tasks that do not wait for one another: an array of jobs, or a single one, which has no indices."""

    name: str
    what: str  # the part that a task makes; the task's index completes it
    indices: tuple[int, ...] = ()
    after: tuple[tuple[str, str], ...] = ()  # (Slurm's condition, stage) of each stage that it waits for


def study_stages(parts: Mapping[str, Sequence[int]]) -> list[Stage]:
    """Returns the stages of a study in the order in which they are submitted, its report last.

    With several baselines (of several models) tickets wait for their end, not for their success, so that the failure of
    one model does not stop the others. A search makes the tickets that failed or are missing itself.
    """
    names = [what for what in ("dense", "ticket", "refine") if parts.get(what)]
    dense = "afterok" if len(parts.get("dense", ())) == 1 else "afterany"
    waits = {"ticket": [(dense, "dense")], "refine": [(dense, "dense"), ("afterany", "ticket")]}
    found = [
        Stage(
            what, what, tuple(parts[what]), tuple((how, other) for how, other in waits.get(what, []) if other in names)
        )
        for what in names
    ]
    return [*found, Stage("report", "report", after=tuple(("afterany", name) for name in names))]


def sbatch_command(
    file: Path, stage: Stage, options: SlurmOptions, name: str, ids: Mapping[str, str], command: str = "study"
) -> tuple[str, ...]:
    """Returns the words of the command that submits one stage. `ids` are the jobs of the stages before it."""
    after = [f"{how}:{ids[other]}" for how, other in stage.after if other in ids]
    logs = str(file.parent / "logs").replace("%", "%%")
    words = [
        "sbatch",
        "--parsable",
        "--export=ALL",
        f"--job-name=lottery-{name}-{stage.name}",
        f"--partition={options.partition}",
    ]
    words += (
        [f"--gpus={options.gpus}", f"--cpus-per-gpu={options.cpus}"]
        if options.gpus
        else [f"--cpus-per-task={options.cpus}"]
    )
    words += [f"--time={options.time}"]
    words += [f"--mem={options.memory}"] if options.memory != "none" else []
    if not stage.indices:
        words += [f"--output={logs}/{stage.name}.log"]
    else:
        limited = options.concurrent != "none" and stage.what.split("-")[0] in ("ticket", "training")
        limit = f"%{options.concurrent}" if limited else ""
        words += [f"--array={ranges(stage.indices)}{limit}", f"--output={logs}/{stage.what}-%a.log"]
    # Without --kill-on-invalid-dep a job whose condition can no longer become true would wait for ever.
    words += [f"--dependency={','.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    python = sys.executable if options.environment == "none" else options.environment
    script = [str(scripts() / "task.sbatch"), str(file), stage.what, python]
    return (*words, *script, *([command] if command != "study" else []))


def ranges(indices: Sequence[int]) -> str:
    """Returns indices as --array takes them: 0, 1, 2, 3, 7 become 0-3,7."""
    return format_ranges(list(set(indices))).replace(", ", ",")


def submit(
    study: Path, parts: Mapping[str, Sequence[int]], options: SlurmOptions, name: str, dry_run: bool = False
) -> list[SlurmJob]:
    """Submits the parts of a study and, as last job, its report.

    `parts` is e.g. {"dense": [0], "ticket": [0, 1, 2], "refine": [0]}. Raises as `submit_stages` does.
    """
    return submit_stages(study, study_stages(parts), options, name, dry_run=dry_run)


def submit_stages(
    file: Path, stages: Sequence[Stage], options: SlurmOptions, name: str, command: str = "study", dry_run: bool = False
) -> list[SlurmJob]:
    """Submits stages, each after those that it waits for. `command` is the command of lottery that reads `file`.

    Raises InputError or MachineError before anything is submitted. If Slurm refuses one job, those before it are
    cancelled. With `dry_run` Slurm is not called, and a stage's name stands for the number of its job.
    """
    options = SlurmOptions(
        **{f.name: getattr(options, f.name) for f in fields(options)} | {"environment": resolve_environment(options)}
    )
    if not dry_run:
        check_stages(file, stages, options, name, command)
        make_folder(file.parent / "logs", "LOTTERY_HOME")
    ids: dict[str, str] = {}
    jobs = []
    try:
        for stage in stages:
            words = sbatch_command(file, stage, options, name, ids, command)
            # where Slurm manages several clusters, its answer is NUMBER;CLUSTER
            ids[stage.name] = stage.name.upper() if dry_run else run_slurm(words, options).split(";")[0]
            jobs.append(SlurmJob(None if dry_run else ids[stage.name], stage.name, words))
    except BaseException:  # also at Ctrl-C
        if ids and not dry_run:
            with contextlib.suppress(InputError, MachineError):
                run_slurm(("scancel", *ids.values()), options)
        raise
    return jobs


def resolve_environment(options: SlurmOptions) -> str:
    """Returns the environment; a folder becomes an absolute path.

    Raises InputError if it can be neither a venv nor a conda environment.
    """
    given = options.environment
    folder = Path(given).expanduser()
    if given == "none":
        return given
    if (folder / "bin" / "python").exists():
        return str(folder.absolute())  # not resolve(), which would follow links
    if "/" in given:
        raise InputError(
            f"environment={given}: no bin/python in it; give the folder of a venv or of a conda environment"
        )
    if "CONDA_EXE" not in os.environ and shutil.which("conda") is None:
        raise InputError(f"environment={given}: no such folder, and no conda here; give a venv's folder, or none")
    return given


def check_options(study: Path, parts: Mapping[str, Sequence[int]], options: SlurmOptions, name: str) -> None:
    """Lets Slurm check the options of a study without submitting anything. Raises as `check_stages` does."""
    check_stages(study, study_stages(parts), options, name)


def check_stages(file: Path, stages: Sequence[Stage], options: SlurmOptions, name: str, command: str = "study") -> None:
    """Lets Slurm check the options without submitting anything.

    Raises InputError if Slurm refuses them, MachineError if Slurm does not answer.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "slurm: there is no sbatch on this machine; run this on a login node of the cluster, or without --slurm"
        )
    known = run_slurm(("sinfo", "--noheader", "--format=%R"), options).split()
    if missing := [p for p in options.partition.split(",") if p not in known]:
        raise InputError(
            f"partition={missing[0]}: this cluster has no such partition; {did_you_mean(missing[0], known)}"
        )
    setting = re.search(r"MaxArraySize\s*=\s*(\d+)", run_slurm(("scontrol", "show", "config"), options))
    most = max((i for stage in stages for i in stage.indices), default=0)
    if setting and most >= int(setting[1]):
        what = "tickets" if command == "study" else "trainings"
        raise InputError(
            f"{command}={name}: it has {most + 1} {what}, but an array of this cluster has at most {setting[1]} tasks "
            f"(MaxArraySize); divide it into several"
        )
    words = sbatch_command(file, stages[0], options, name, {}, command)
    run_slurm((words[0], "--test-only", *words[1:]), options)


def run_slurm(words: Sequence[str], options: SlurmOptions) -> str:
    """Returns what one of Slurm's commands prints.

    Raises InputError if Slurm refuses the command, MachineError if Slurm does not answer.
    """
    # If this process runs in a Slurm job itself, that job's variables must not reach the new tasks: its restart count
    # would end them.
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in ("SLURM_CONF", "SLURM_CLUSTERS")
    }
    environment.pop("MLFLOW_RUN_ID", None)
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S, env=environment)
    except FileNotFoundError as e:
        raise MachineError(f"slurm: there is no {words[0]} on this machine") from e
    except subprocess.TimeoutExpired as e:
        last = " ".join((e.stderr or b"").decode(errors="replace").split())
        raise MachineError(f"slurm: {words[0]} has not answered for {ANSWER_S} s; try again later ({last})") from e
    if done.returncode == 0:
        return done.stdout.strip()
    messages = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in done.stderr.splitlines() if line.strip()]
    reason = "; ".join(dict.fromkeys(messages)) or f"{words[0]} ended with {done.returncode}"
    if re.search("[Uu]nable to contact|[Cc]onnection|[Tt]imed out", reason):
        raise MachineError(f"slurm: {reason}")
    asked = " ".join(f"{f.name}={getattr(options, f.name)}" for f in fields(options) if f.name != "environment")
    raise InputError(f"slurm refuses: {reason} ({asked})")


def reachability_warnings() -> list[str]:
    """Returns a line for each place named by the environment that tasks on other nodes may not reach."""
    server, uri = os.environ.get("LOTTERY_SERVER"), os.environ.get("MLFLOW_TRACKING_URI", "")
    away = "start a server (docs/cluster.md) and set MLFLOW_TRACKING_URI to its address"
    lines = []
    if server:  # tasks read the address from the server's file, not from MLFLOW_TRACKING_URI
        if not (Path(server) / "address").exists():
            lines.append(
                f"LOTTERY_SERVER={server}: no server has published its address there; tasks wait for it 10 minutes"
            )
    elif not uri:
        lines.append(f"MLFLOW_TRACKING_URI is not set: tasks share sqlite:///mlflow.db of this folder; {away}")
    elif not urlsplit(uri).netloc:  # sqlite:, file:, a path
        lines.append(f"MLFLOW_TRACKING_URI={uri}: a file, which tasks on other nodes may not reach or lock; {away}")
    elif urlsplit(uri).hostname in LOCAL_HOSTS:
        host = urlsplit(uri).hostname
        lines.append(f"MLFLOW_TRACKING_URI names {host}, which is another machine on other nodes; {away}")
    folder = home().resolve()
    local = ("/tmp", "/var/tmp", "/dev/shm", "/run", tempfile.gettempdir())
    if any(folder.is_relative_to(Path(place).resolve()) for place in local):
        lines.append(f"LOTTERY_HOME={folder}: only this machine has this disk; set it to a folder that all nodes share")
    return lines
