"""The command `lottery hypothesis`: train, prune, rewind, train again."""

import functools
import json
import shlex
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lottery.cli.options import json_option, spec_options
from lottery.cli.study import given_options
from lottery.errors import InputError, MachineError
from lottery.hypothesis.design import Hypothesis, read_hypothesis
from lottery.parameters import int_range
from lottery.progress import say
from lottery.study.slurm import SlurmOptions, reachability_warnings

if TYPE_CHECKING:
    from lottery.hypothesis.lab import Lab
    from lottery.hypothesis.run import Result


@click.command()
@click.option("--preset", default="quick", show_default=True, help="quick, full, or a YAML file (see --show).")
@spec_options("text", "seed", "device", of=Hypothesis)
@click.option(
    "--jobs", default="auto", show_default=True, help="Trainings at a time; auto: one per core, or one on a GPU."
)
@click.option("--seeds", default=None, help="How many seeds, from --seed on.  [default: as many as the preset says]")
@click.option("--show", is_flag=True, help="Print the preset's YAML file, and do nothing else.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and do nothing else.")
@click.option("--retrain", default=None, help="Train this registered ticket (models:/NAME/VERSION) again, and compare.")
@click.option(
    "--join",
    default=None,
    help="Report runs that differ in their seeds as one: ids or files, with commas; a name means its newest run.",
)
@click.option("--part", default=None, help="Make only this part, as one task of a cluster does.")
@click.option(
    "--out", type=click.Path(), default=None, help="The report's folder; none: no report.  [default: in LOTTERY_HOME]"
)
@click.option("--slurm", "on_slurm", is_flag=True, help="Run on a Slurm cluster, one task per training.")
@spec_options(of=SlurmOptions)
@json_option
def hypothesis(
    preset: str, text: str, seed: str, device: str, jobs: str, seeds: str | None, show: bool, dry_run: bool,
    retrain: str | None, join: str | None, part: str | None, out: str | None, on_slurm: bool, as_json: bool,
    **slurm: Any,
) -> None:  # fmt: skip
    """Test the lottery ticket hypothesis: train a small model, prune, rewind, train again, with controls.

    Trainings that exist already are not made again: the same command continues one that was killed.

    Example: lottery hypothesis --preset quick --text stories
    """
    given = given_options()
    check_together(preset, given)
    if retrain is not None:
        train_again(retrain, text if "--text" in given else None, as_json)
        return
    if out not in (None, "none"):
        from lottery.report.writing import check_folder

        check_folder(Path(str(out)).expanduser().resolve(), str(out))
    if join is not None:
        report_joined(join, out, as_json)
        return
    options = SlurmOptions.parse(**slurm)
    count = int_range(1, word="auto")["parse"]("jobs", jobs)
    asked = read_hypothesis(preset)
    if not preset.endswith(".json"):
        asked = asked.with_options(text=text, seed=seed, device=device, **({} if seeds is None else {"seeds": seeds}))
    if show:
        click.echo(asked.yaml(), nl=False)
        return
    command = shlex.join(["lottery", "hypothesis", *given])
    if on_slurm:
        submit(asked, options, command, dry_run, as_json)
        return
    from lottery.hypothesis.lab import open_lab
    from lottery.hypothesis.run import default_jobs, finalize, make_part, run

    lab = open_lab(asked)
    if dry_run:
        print_plan(lab, as_json)
    elif part is not None and part != "report":
        make_part(lab, part)
    elif part == "report":
        print_result(lab, finalize(lab), out, as_json)
    else:
        jobs_here = default_jobs(lab.plan.setup.device) if count == "auto" else count
        print_result(lab, run(lab, jobs_here, {"command": command}), out, as_json)


def train_again(uri: str, text: str | None, as_json: bool) -> None:
    """Trains a registered ticket again and prints what came out."""
    from lottery.hypothesis import retrain

    found = retrain.retrain(uri, text)
    click.echo(json.dumps(asdict(found)) if as_json else retrain.retrained_line(found))


def check_together(preset: str, given: list[str]) -> None:
    """Raises InputError for options that would have no effect."""
    words = {word for word in given if word.startswith("--")}
    if preset.endswith(".json") and (
        others := words & {"--text", "--seed", "--seeds", "--device", "--slurm", "--show"}
    ):
        raise InputError(f"preset={preset}: a plan cannot be changed; leave {', '.join(sorted(others))} out")
    if "--retrain" in words and (others := words - {"--retrain", "--text", "--json"}):
        raise InputError(f"{', '.join(sorted(others))}: with --retrain it has no effect; leave one of them out")
    if "--join" in words and (others := words - {"--join", "--out", "--json"}):
        raise InputError(f"{', '.join(sorted(others))}: with --join it has no effect; leave one of them out")
    if "--part" in words and (others := words & {"--slurm", "--dry-run", "--show", "--jobs"}):
        raise InputError(f"{', '.join(sorted(others))}: with --part it has no effect; leave one of them out")
    if {"--slurm", "--jobs"} <= words:
        raise InputError("--jobs: with --slurm it has no effect; give --concurrent, or leave it out")
    if "--out" in words and (others := words & {"--slurm", "--dry-run"}):
        raise InputError(f"{min(others)}: no report is written with it; leave out --out")
    asked = {f"--{f.name}" for f in fields(SlurmOptions)} & words
    if asked and "--slurm" not in words:
        raise InputError(f"{', '.join(sorted(asked))}: only with --slurm; add --slurm, or leave this out")


def submit(asked: Hypothesis, options: SlurmOptions, command: str, dry_run: bool, as_json: bool) -> None:
    """Submits the trainings as jobs, or prints the commands that would."""
    from lottery.hypothesis import cluster

    for line in reachability_warnings():
        say(f"warning: {line}")
    lab, jobs = cluster.submit(asked, options, command, dry_run)
    if as_json:
        found = [{"id": job.id, "what": job.what, "command": list(job.command)} for job in jobs]
        click.echo(json.dumps({"hypothesis": asked.name, "study_id": lab.id, "jobs": found}))
        return
    for job in jobs:
        click.echo(str(job) if dry_run else f"job {job.id}: {job.what}")
    if not dry_run:
        folder = cluster.plan_file(lab).parent
        click.echo(f"logs: {folder / 'logs'}; the report will be in {folder / 'report'}")


def print_plan(lab: "Lab", as_json: bool) -> None:
    """Prints every training with the number of steps that it takes."""
    from lottery.hypothesis.wording import training_title
    from lottery.training.recipe import Training

    rows = [
        {
            "part": task.name,
            "title": training_title(task.what, lab.hypothesis.steps),
            "steps": task.steps,
            "needs": list(task.needs),
        }
        for task in lab.tasks
        if isinstance(task.what, Training)
    ]
    if as_json:
        click.echo(json.dumps({"hypothesis": lab.hypothesis.name, "study_id": lab.id, "trainings": rows}))
        return
    for row in rows:
        click.echo(f"{row['part']:14} {row['title']}")
    steps, plan = sum(task.steps for task in lab.tasks), lab.plan
    click.echo(f"{len(plan.trainings)} trainings, {steps:,} steps, {len(plan.segments)} lines between their ends")


def print_result(lab: "Lab", result: "Result", out: str | None, as_json: bool) -> None:
    """Prints the claims and the losses, and where the report is."""
    from lottery.hypothesis.run import log_report, report_folder
    from lottery.report.hypothesis_page import write_hypothesis_report

    found: dict[str, Any] = {}
    if out != "none":
        folder = Path(out) if out else report_folder(lab)
        found = write_hypothesis_report(result.record, folder)
        log_report(result, folder)
    if as_json:
        click.echo(json.dumps({"run_id": result.run_id, "report": found.get("index"), **of_json(result.record)}))
    else:
        print_record(result.record)
        click.echo(f"run: {result.run_id}")
        if found:
            click.echo(f"report: {found['index']}")
        if result.page:
            click.echo(f"browse: {result.page}")
    sys.stdout.flush()
    if result.failed:
        count = f"{len(result.failed)} of {len(result.record['trainings'])} trainings failed or are missing"
        raise MachineError(f"{count}; the first: {result.failed[0]['reason']}; the same command tries them again")


def report_joined(names: str, out: str | None, as_json: bool) -> None:
    """Joins runs that differ in their seeds alone, prints what they say together, and writes their report."""
    from lottery.hypothesis.joining import join_records
    from lottery.hypothesis.run import joined_folder
    from lottery.registry import store
    from lottery.report.hypothesis_page import write_hypothesis_report
    from lottery.report.hypothesis_saved import find_record

    client = functools.cache(lambda: store.connect(read_only=True))
    parts = [name.strip() for name in names.split(",") if name.strip()]
    record = join_records([find_record(client, name) for name in parts])
    found = write_hypothesis_report(record, Path(out) if out else joined_folder(record)) if out != "none" else {}
    if as_json:
        click.echo(json.dumps({"report": found.get("index"), **of_json(record)}))
        return
    print_record(record)
    if found:
        click.echo(f"report: {found['index']}")


def print_record(record: dict[str, Any]) -> None:
    """Prints the claims, the losses and the tickets of a record."""
    from lottery.report.hypothesis_tables import hypothesis_table

    click.echo(hypothesis_table(record))
    for t in record["tickets"]:
        click.echo(f"registered: {t['model_uri']}: {t['arm']}, {t['density']:.3g} of the weights, seed {t['seed']}")


def of_json(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the runs and claims of a record as --json prints them."""
    keys = ("arm", "seed", "round", "density", "rewind", "loss", "run_id", "lr", "steps", "outcome")
    return {
        "runs": [{key: t.get(key) for key in keys} for t in record["trainings"]],
        "claims": [
            {key: c[key] for key in ("claim", "arm", "control", "density", "holds", "difference", "lo", "hi")}
            for c in record["claims"]
        ],
    }
