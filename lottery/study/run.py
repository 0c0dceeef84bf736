"""This file runs a study: it makes each ticket of one question once, on one machine or as the tasks of a cluster.

The study's run in MLflow (kind=study) holds the plan. A tag of each ticket's run (`parts.part_key`) says which parts of
the study it is, whether the study made the run or found it. Reports need no more than this, and a second try continues
from it.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

from lottery.errors import InputError, did_you_mean
from lottery.files.locks import process_lock
from lottery.jobs.job import prepare_job
from lottery.measuring.cache import Cache
from lottery.registry import lookup, recovery, runs, store
from lottery.registry.cards import LONGEST_TAG
from lottery.registry.views import NOTE_TAG
from lottery.study.console import study_table
from lottery.study.planning import Plan
from lottery.study.preparation import check_disk_space
from lottery.study.progress import show_progress
from lottery.study.result import PartResult, StudyResult, cliffs, labelled, merge_search_rows, read_rows, unfinished
from lottery.study.runner import PartRunner
from lottery.study.start import open_study, resume_plan, schedule_run


def run(plan: Plan, cache: Cache, yes: bool = False, tags: Mapping[str, str] | None = None) -> StudyResult:
    """Makes every part of a study in this process; parts that finished before are found, not made again.

    `tags` are additional tags of the study's run. If a ticket fails, that is reported and the others go on. Raises
    InputError if a cluster is working on the study, unless a person said `yes`. Raises MachineError if the tracking
    store stops answering; the same command then continues from there.
    """
    client = store.connect()
    recovery.close_killed_runs(client)
    plan = resume_plan(client, plan, yes)
    check_disk_space(plan, yes)
    if len(plan.study.models) == 1:
        prepare_job(plan.parts[0].spec, cache)  # refuses a bad data set, device or window now and only once
    with open_study(client, plan, tags) as run:
        plan = replace(plan, run=run.id)
        titles = [f"{p.base} {p.title}" for p in plan.parts if p.width is None]
        rows: list[PartResult] = []
        with show_progress(titles) as watch:
            runner = PartRunner(client, plan, cache, watch)
            for part in plan.parts:
                rows += runner.run_part(part, rows)
        result = log_result(run, plan, rows)
    return result


def run_part(plan: Plan, name: str) -> list[PartResult]:
    """Makes one part of a study; this is what one task of a cluster does.

    The study's run is begun if there is none yet. Raises InputError for an unknown part, and if the store does not hold
    the study's run.
    """
    parts = {part.part: part for part in plan.parts}
    if name not in parts:
        raise InputError(f"part={name}: {did_you_mean(name, [*parts, 'report'])}")
    part = parts[name]
    client = store.connect()
    if plan.run is None:
        with process_lock(f"study-{plan.id}"):
            plan = resume_plan(client, plan, yes=True)
            plan = schedule_run(plan)[0] if plan.run is None else plan
    assert plan.run is not None
    if lookup.find_run(client, "", plan.run) is None:
        raise InputError(f"study={plan.study.name}: its run {plan.run} is not in {store.store_name()}; submit it again")
    todo = [*(parts[point] for point in part.points), part]  # a search needs the tickets of its grid first
    rows: list[PartResult] = []
    with show_progress([f"{p.base} {p.title}" for p in todo if p.width is None]) as watch:
        runner = PartRunner(client, plan, Cache(), watch)
        for each in todo:
            rows += runner.run_part(each, rows)
    return labelled(client, rows)


def finalize_study(plan: Plan) -> StudyResult:
    """Ends the run of a study whose parts other processes made, with what those left in MLflow."""
    client = store.connect()
    recovery.close_killed_runs(client)
    plan = plan if plan.run else resume_plan(client, plan, yes=True)
    with open_study(client, plan) as run:
        plan = replace(plan, run=run.id)
        return log_result(run, plan, read_rows(client, plan))


def log_result(run: runs.Run, plan: Plan, rows: list[PartResult]) -> StudyResult:
    """Writes the result to the study's run and returns it. The run ends as FAILED if a part failed or is missing."""
    rows = labelled(run.client, [*merge_search_rows(plan, rows), *unfinished(plan, rows)])
    result = StudyResult(plan, run.id, rows, cliffs(plan, rows), run.page)
    failed = sum(row.state in ("failed", "missing") for row in rows)
    metrics = {"tickets": float(len(result.rows) - failed), "failed": float(failed)}
    named = [(c.base, c.title) for c in result.cliffs]
    for c in result.cliffs:
        if c.known:  # searches that differ only in a tolerance or a window have the same title
            more = f"_{c.part}" if named.count((c.base, c.title)) > 1 else ""
            metrics[runs.metric_name(f"cliff_{c.base}_{c.title}{more}")] = (c.below + c.above) / 2
    run.log_metrics(metrics, None, None, int(time.time() * 1000))
    run.set_tags({NOTE_TAG: study_table(result, markdown=True)[:LONGEST_TAG]})
    if failed:
        run.set_tags({"outcome": "failed", "reason": f"{failed} of {len(result.rows)} parts are failed or missing"})
        run.finish("FAILED")
    return result
