"""A study: many tickets of one question, made once each, on one machine or by the tasks of a cluster.

Its run in MLflow (kind=study) holds the plan; every ticket's run says by a tag (`parts.part_key`) which part of it it is,
whether it was made for it or found. That is all that a report needs, and all that a second try needs to go on.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

from lottery.errors import InputError, did_you_mean
from lottery.files.locks import process_lock
from lottery.jobs.job import prepare_job
from lottery.measuring.cache import Cache
from lottery.registry import lookup, recovery, runs, store
from lottery.study.console import study_table
from lottery.study.planning import Plan
from lottery.study.preparation import check_disk_space
from lottery.study.progress import show_progress
from lottery.study.result import PartResult, StudyResult, cliffs, labelled, merge_search_rows, read_rows, unfinished
from lottery.study.runner import PartRunner
from lottery.study.start import open_study, resume_plan, schedule_run


def run(plan: Plan, cache: Cache, yes: bool = False, tags: Mapping[str, str] | None = None) -> StudyResult:
    """Every part of a study, in this process: what has finished before is found, not made again. `tags`: further ones of
    its run.

    A ticket that fails is reported, and the others go on. Raises InputError where a cluster is at the study, unless a
    person has said `yes`; MachineError where the tracking store goes away: the same command then goes on where it was.
    """
    client = store.connect()
    recovery.close_killed_runs(client)
    plan = resume_plan(client, plan, yes)
    check_disk_space(plan, yes)
    if len(plan.study.models) == 1:
        prepare_job(plan.parts[0].spec, cache)  # a text, a device, a window that cannot serve is said once, and at once
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
    """One part of a study: what one task of a cluster does. The study's run is begun where there is none yet."""
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
    todo = [*(parts[point] for point in part.points), part]  # a search finds its grid, or makes what is missing of it
    rows: list[PartResult] = []
    with show_progress([f"{p.base} {p.title}" for p in todo if p.width is None]) as watch:
        runner = PartRunner(client, plan, Cache(), watch)
        for each in todo:
            rows += runner.run_part(each, rows)
    return labelled(client, rows)


def finalize_study(plan: Plan) -> StudyResult:
    """The end of a study whose parts were done by others: its run is finished with what they have left in MLflow."""
    client = store.connect()
    recovery.close_killed_runs(client)
    plan = plan if plan.run else resume_plan(client, plan, yes=True)
    with open_study(client, plan) as run:
        plan = replace(plan, run=run.id)
        return log_result(run, plan, read_rows(client, plan))


def log_result(run: runs.Run, plan: Plan, rows: list[PartResult]) -> StudyResult:
    """The study's run says what came of it."""
    rows = labelled(run.client, [*merge_search_rows(plan, rows), *unfinished(plan, rows)])
    result = StudyResult(plan, run.id, rows, cliffs(plan, rows), run.page)
    failed = sum(row.state in ("failed", "missing") for row in rows)
    metrics = {"tickets": float(len(result.rows) - failed), "failed": float(failed)}
    named = [(c.base, c.title) for c in result.cliffs]
    for c in result.cliffs:
        if c.known:  # searches that differ in a tolerance or a window have one title
            more = f"_{c.part}" if named.count((c.base, c.title)) > 1 else ""
            metrics[runs.metric_name(f"cliff_{c.base}_{c.title}{more}")] = (c.below + c.above) / 2
    run.log_metrics(metrics, None, None, int(time.time() * 1000))
    run.set_tags({"mlflow.note.content": study_table(result, markdown=True)[:8000]})
    if failed:
        run.set_tags({"outcome": "failed", "reason": f"{failed} of {len(result.rows)} parts are failed or missing"})
        run.finish("FAILED")
    return result
