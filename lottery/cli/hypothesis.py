"""The command `lottery hypothesis`: train, prune, rewind, train again."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lottery.cli.options import json_option
from lottery.cli.study import given_options
from lottery.errors import InputError
from lottery.parameters import int_range

if TYPE_CHECKING:
    from lottery.hypothesis.lab import Lab
    from lottery.hypothesis.run import Result


@click.command()
@click.option("--preset", default="quick", show_default=True, help="quick, full, or a YAML file (see --show).")
@click.option(
    "--text",
    default=None,
    help="The text to train on: stories, a .txt, .jsonl or .parquet file, or a hub data set.  [default: stories]",
)
@click.option("--seed", default=None, help="The first seed.  [default: 0]")
@click.option("--device", default=None, help="auto, cpu or cuda.  [default: auto]")
@click.option(
    "--jobs", default="auto", show_default=True, help="Trainings at a time; auto: one per core, or one on a GPU."
)
@click.option(
    "--show", is_flag=True, help="Print the preset's YAML file, with the options above in it, and do nothing else."
)
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and do nothing else.")
@click.option(
    "--out", type=click.Path(), default=None, help="The report's folder; none: no report.  [default: in LOTTERY_HOME]"
)
@json_option
def hypothesis(
    preset: str, text: str | None, seed: str | None, device: str | None, jobs: str, show: bool, dry_run: bool,
    out: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Test the lottery ticket hypothesis: train a small model, prune, rewind, train again, with controls.

    Trainings that exist already are not made again: the same command continues one that was killed.

    Example: lottery hypothesis --preset quick --text stories
    """
    from lottery.hypothesis import design

    asked = design.read_hypothesis(preset).with_options(text=text, seed=seed, device=device)
    count = int_range(1, word="auto")["parse"]("jobs", jobs)
    if show:
        click.echo(asked.yaml(), nl=False)
        return
    if out not in (None, "none"):
        from lottery.report.writing import check_folder

        check_folder(Path(str(out)).expanduser().resolve(), str(out))
    from lottery.hypothesis.lab import open_lab
    from lottery.hypothesis.run import default_jobs, run

    lab = open_lab(asked)
    if dry_run:
        print_plan(lab, as_json)
        return
    command = " ".join(["lottery", "hypothesis", *given_options()])
    result = run(lab, default_jobs(lab.plan.setup.device) if count == "auto" else count, {"command": command})
    print_result(lab, result, out, as_json)


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
    from lottery.hypothesis.run import report_folder
    from lottery.report.hypothesis_page import write_hypothesis_report
    from lottery.report.hypothesis_tables import hypothesis_table

    found: dict[str, Any] = {}
    if out != "none":
        found = write_hypothesis_report(result.record, Path(out) if out else report_folder(lab))
    if as_json:
        click.echo(json.dumps({"run_id": result.run_id, "report": found.get("index"), **of_json(result.record)}))
    else:
        click.echo(hypothesis_table(result.record))
        click.echo(f"report: {found['index']}" if found else f"run: {result.run_id}")
        if result.page:
            click.echo(f"browse: {result.page}")
    if result.failed:
        raise InputError(
            f"{len(result.failed)} trainings failed or are missing; the first: {result.failed[0]['reason']}"
        )
    sys.stdout.flush()


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
