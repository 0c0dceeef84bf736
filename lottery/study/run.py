"""A study: many tickets of one question, made once each, on one machine or by the tasks of a cluster.

Its run in MLflow (kind=study) holds the plan; every ticket's run says by a tag (`tracking.part_key`) which part of it it is,
whether it was made for it or found. That is all that a report needs, and all that a second try needs to go on.
"""

import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lottery.errors import InputError, MachineError, known_failure, nearest
from lottery.files.home import alone, home
from lottery.jobs.dense import run_dense
from lottery.jobs.job import find_made, validate
from lottery.jobs.run import run as run_ticket
from lottery.measuring.setup import dataset_of
from lottery.measuring.shared import Shared
from lottery.measuring.text import read_text
from lottery.progress import say
from lottery.registry import finding, parts, publishing, runs, store, versions
from lottery.spec import Spec, digest
from lottery.study.bisection import crossing, halfway, is_done
from lottery.study.console import study_table
from lottery.study.design import Study
from lottery.study.planning import Part, Plan, baseline_of, make_plan
from lottery.study.watching import Watch, watching

MUCH = 100 * 10**9  # bytes of tickets that are not written without being asked for


@dataclass(frozen=True)
class Row:
    """What became of one part. `state`: made, found (finished before), failed, missing."""

    part: str
    title: str
    base: str
    state: str
    params: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    ticket: str | None = None
    run_id: str | None = None
    budget: float | None = None
    reason: str | None = None

    @property
    def ratio(self) -> float | None:
        """To dense; NaN of what overflowed; None where it is not known."""
        overflowed = self.tags.get("outcome") == "overflow"
        return self.metrics.get("perplexity_ratio", math.nan if overflowed else None)


@dataclass(frozen=True)
class Cliff:
    """Between which two sparsities the ratio to dense crosses `limit`."""

    part: str
    title: str
    base: str
    below: float
    above: float
    limit: float
    known: bool  # as well as was asked, and the upper one was measured


@dataclass(frozen=True)
class Result:
    plan: Plan
    run_id: str
    rows: list[Row]  # the dense ones, then the tickets, then what searches have added
    cliffs: list[Cliff]
    page: str | None = None

    def json(self) -> dict[str, Any]:
        about = {"study": self.plan.study.name, "study_id": self.plan.id, "run_id": self.run_id}
        return about | {
            "tickets": [row.__dict__ for row in self.rows],
            "cliffs": [cliff.__dict__ for cliff in self.cliffs],
            "left_out": self.plan.left_out,
        }


def prepare(study: Study, fresh: bool = False) -> tuple[Plan, Shared]:
    """What will be done, said before anything is."""
    shared = Shared()
    plan = replace(make_plan(study, shared), fresh=fresh)
    count, (free, folder) = len(plan.refined), free_bytes(plan)
    searches = f" and {count} search{'es' if count > 1 else ''} for a sparsity" if count else ""
    room = f"{free / 1e9:,.1f} GB are free in {folder}" if free is not None else "what the server has free is not known"
    say(f"{plan.title}: {len(plan.tickets)} tickets{searches}, {plan.disk_bytes / 1e9:,.2f} GB on disk in all; {room}")
    for left in plan.left_out:
        say(f"left out, {left['model']}: {left['reason']}")
    return plan, shared


def free_bytes(plan: Plan) -> tuple[int | None, Path]:
    """What is free in the folder of this machine that fills; None where a server takes the tickets."""
    kept = all(part.spec.register == "none" for part in plan.tickets)
    folder = home() if kept else Path.cwd()
    there = next(f for f in (folder, *folder.parents) if f.exists())
    served = not kept and store.store_name().startswith("http")
    return (None if served else shutil.disk_usage(there).free), folder


def check_room(plan: Plan, yes: bool) -> None:
    """Raises InputError where a person has to say yes first. A study that was begun has been asked, and has some of its
    tickets aljob."""
    free, _ = free_bytes(plan)
    if not yes and plan.run is None and plan.disk_bytes > min(MUCH if free is None else free, MUCH):
        raise InputError(
            f"study={plan.study.name}: its tickets take {plan.disk_bytes / 1e9:,.1f} GB; say --yes if there is room for them, "
            f"or give fewer models, or storage=mask"
        )


def folder_of(plan: Plan) -> Path:
    """For a study's plan, logs and report: one for each tracking store that it is in."""
    return home() / "studies" / f"{plan.id}-{store.store_digest()[:8]}"


def run(plan: Plan, shared: Shared, yes: bool = False, tags: Mapping[str, str] | None = None) -> Result:
    """Every part of a study, in this process: what has finished before is found, not made again. `tags`: further ones of
    its run.

    A ticket that fails is reported, and the others go on. Raises InputError where a cluster is at the study, unless a
    person has said `yes`; MachineError where the tracking store goes away: the same command then goes on where it was.
    """
    client = store.connect()
    publishing.close_dead(client)
    plan = continued(client, plan, yes)
    check_room(plan, yes)
    if len(plan.study.models) == 1:
        validate(plan.parts[0].spec, shared)  # a text, a device, a window that cannot serve is said once, and at once
    with open_study(client, plan, tags) as run:
        plan = replace(plan, run=run.id)
        titles = [f"{p.base} {p.title}" for p in plan.parts if p.width is None]
        rows: list[Row] = []
        with watching(titles) as watch:
            doer = Doer(client, plan, shared, watch)
            for part in plan.parts:
                rows += doer.do(part, rows)
        result = conclude(run, plan, rows)
    return result


def run_part(plan: Plan, name: str) -> list[Row]:
    """One part of a study: what one task of a cluster does. The study's run is begun where there is none yet."""
    parts = {part.part: part for part in plan.parts}
    if name not in parts:
        raise InputError(f"part={name}: {nearest(name, [*parts, 'report'])}")
    part = parts[name]
    client = store.connect()
    if plan.run is None:
        with alone(f"study-{plan.id}"):
            plan = continued(client, plan, yes=True)
            plan = begin(plan)[0] if plan.run is None else plan
    assert plan.run is not None
    if finding.find_run(client, "", plan.run) is None:
        raise InputError(f"study={plan.study.name}: its run {plan.run} is not in {store.store_name()}; submit it again")
    todo = [*(parts[point] for point in part.points), part]  # a search finds its grid, or makes what is missing of it
    rows: list[Row] = []
    with watching([f"{p.base} {p.title}" for p in todo if p.width is None]) as watch:
        doer = Doer(client, plan, Shared(), watch)
        for each in todo:
            rows += doer.do(each, rows)
    return labelled(client, rows)


def close(plan: Plan) -> Result:
    """The end of a study whose parts were done by others: its run is finished with what they have left in MLflow."""
    client = store.connect()
    publishing.close_dead(client)
    plan = plan if plan.run else continued(client, plan, yes=True)
    with open_study(client, plan) as run:
        plan = replace(plan, run=run.id)
        return conclude(run, plan, rows_of(client, plan))


def begin(plan: Plan, yes: bool = False, tags: Mapping[str, str] | None = None) -> tuple[Plan, str | None]:
    """The study's run, begun for the tasks of a cluster to come, and the state that it was in before (None: it is new).
    Raises InputError where a cluster is at it already, or there is no room, unless a person has said `yes`."""
    client = store.connect()
    publishing.close_dead(client)
    plan = continued(client, plan, yes)
    check_room(plan, yes)
    before = client.get_run(plan.run).info.status if plan.run else None
    check_texts_and_names(plan)
    with open_study(client, plan, tags) as run:
        run.finish("SCHEDULED")
        return replace(plan, run=run.id), before


def check_texts_and_names(plan: Plan) -> None:
    """What every task would refuse is refused once, and at once. Raises InputError."""
    for part in plan.tickets:
        if part.spec.register != "none":
            versions.model_name(part.spec.register, part.base_id)
    for dataset in {dataset_of(p.spec, p.base_id) for p in plan.baselines if "perplexity" in p.spec.measures}:
        read_text(dataset)


def give_up(plan: Plan, before: str | None, reason: str) -> None:
    """The run of a study that no cluster took is what it was; a new one goes."""
    client = store.connect()
    assert plan.run is not None
    if before is None:
        client.delete_run(plan.run)
        return
    client.set_terminated(plan.run, before)
    if before == "FAILED":
        client.set_tag(plan.run, "reason", reason)


def continued(client: store.Client, plan: Plan, yes: bool) -> Plan:
    """The plan with the run that it goes on in: the newest of the same study, unless every ticket is to be made again; one
    that was begun so and has not come to its end (killed, or a ticket failed and it is not to begin again) goes on so.
    Without a run: a new one is to be opened.

    Raises InputError where tasks of a cluster are at it, unless a person has said `yes`: they would make tickets twice.
    """
    before = parts.find_study(client, plan.id)
    if before is None:
        return plan
    if before.info.status == "SCHEDULED" and not yes:
        raise InputError(
            f"study={plan.study.name}: it was submitted before, and its last job has not ended it (run {before.info.run_id}); "
            f"wait for it, or say --yes if its jobs are gone"
        )
    status = before.info.status
    if "fresh" in before.data.tags and status != "FINISHED" and not (plan.fresh and status == "FAILED"):
        return replace(plan, run=before.info.run_id, fresh=True)
    return plan if plan.fresh else replace(plan, run=before.info.run_id)


@contextmanager
def open_study(client: store.Client, plan: Plan, more: Mapping[str, str] | None = None) -> Iterator[runs.Run]:
    """The study's run: the one that `mlflow run` has opened, or that of the plan, or a new one."""
    tags = {"kind": "study", "study": plan.study.name, "study_id": plan.id, **(more or {})}
    tags |= {"fresh": "yes"} if plan.fresh else {}
    params = {"name": plan.study.name, "models": ",".join(plan.study.models)} | {
        name: ",".join(values) for name, values in plan.study.parameters.items()
    }
    params |= {"budget": ",".join(f"{b:g}" for b in plan.study.budget) or "none"}
    resume, id = runs.adopted() or plan.run, digest([plan.id, store.store_digest()])[:16]
    with runs.open_run(client, id, plan.title, params, tags, resume=resume, adopt=False) as run:
        run.log_files({"plan.json": replace(plan, run=run.id).json(), "study.yaml": plan.study.yaml()})
        yield run


class Doer:
    """Makes the parts of one study, or finds them."""

    def __init__(self, client: store.Client, plan: Plan, shared: Shared, watch: Watch) -> None:
        self.client, self.plan, self.shared, self.watch = client, plan, shared, watch
        assert plan.run is not None
        self.run, self.key = plan.run, parts.part_key(plan.run)
        self.without: dict[tuple[Any, ...], str] = {}  # dense baselines that failed, and why

    def do(self, part: Part, known: list[Row]) -> list[Row]:
        """`known`: what became of the parts before it."""
        if part.width is not None:
            return self.search(part, known)
        if part in self.plan.baselines:
            return [self.dense(part)]
        return [self.ticket(part.part, part.spec, part.base, part.budget)]

    def dense(self, part: Part) -> Row:
        def work(within: dict[str, str]) -> Row:
            job = validate(part.spec, self.shared)
            _, run_id, made = run_dense(job, self.plan.study.name, within)
            state, params = "made" if made else "found", part.spec.params()
            if run_id is None:
                reason = "the dense base is not at hand, and no run measured it so"
                return Row(part.part, "dense", part.base, "missing", params, reason=reason)
            data = self.client.get_run(run_id).data
            return Row(part.part, "dense", part.base, state, params, data.metrics, data.tags, None, run_id)

        row = self.attempt(part.part, part.spec, part.base, "dense", None, work)
        if row.state == "failed":
            self.without[baseline_of(part.spec)] = row.reason or ""
        return row

    def ticket(self, part: str, spec: Spec, base: str, budget: float | None = None) -> Row:
        def work(within: dict[str, str]) -> Row:
            if (reason := self.without.get(baseline_of(spec))) is not None:
                raise MachineError(f"its dense baseline failed: {reason}")
            job = validate(spec, self.shared)
            about = partial(Row, part, spec.title, base, params=spec.params(), ticket=job.ticket, budget=budget)
            with alone(f"part-{job.ticket}"):  # another study's process may be making it
                before = find_made(self.client, job, self.run if self.plan.fresh else None)
                if before is not None:
                    data = before.data
                    return about("found", metrics=data.metrics, tags=data.tags, run_id=before.info.run_id)
                made = run_ticket(job, study=self.plan.study.name, within=within)
            return about("made", metrics=made.metrics, tags=made.tags, run_id=made.run_id)

        return self.attempt(part, spec, base, spec.title, budget, work)

    def search(self, part: Part, known: list[Row]) -> list[Row]:
        """Tickets at the sparsities that narrow the crossing down, halving what is not known."""
        assert part.width is not None
        rows: list[Row] = []
        limit = 1 + part.spec.tolerance
        while points := points_of(part, [*known, *rows]):
            sparsity = halfway(*crossing(points, limit), part.width)
            if sparsity is None:
                break
            row = self.ticket(part.part, replace(part.spec, sparsity=sparsity), part.base)
            rows.append(row)
            if row.ratio is None:  # it failed, and would again
                break
        parts.count_in(self.client, self.key, part.part, [row.run_id for row in rows if row.run_id])
        return rows

    def attempt(
        self, part: str, spec: Spec, base: str, title: str, budget: float | None, work: Callable[[dict[str, str]], Row]
    ) -> Row:
        """What `work` gives; where it fails, a row that says so, and a failed run in MLflow."""
        self.watch.begin(f"{base} {title}")
        began = int(time.time() * 1000)
        within = {self.key: part, "mlflow.parentRunId": self.run}
        try:
            row = work(within)
        except Exception as e:  # one ticket's failure, of whatever class, is not the others'
            try:
                store.connect()
            except MachineError as away:
                # That is the end. Where a ticket was kept on disk, its own error says how it is sent later.
                raise (e if isinstance(e, MachineError) else away) from e
            known = known_failure(e)
            if known is None:  # a defect of ours: the others go on all the same
                traceback.print_exc(file=sys.stderr)
            reason = known[0] if known else f"{type(e).__name__}: {e}"
            kind = {"kind": "dense" if part.startswith("dense") else "ticket", "base": base}
            tags = within | kind | {"study": self.plan.study.name, "outcome": "failed", "reason": reason[:4000]}
            run_id = parts.failed_run(self.client, title, spec.params(), tags, self.key, part, began)
            row = Row(part, title, base, "failed", spec.params(), {}, tags, None, run_id, budget, reason)
        if not part.startswith("refine"):  # a search says at its end which tickets are its
            parts.count_in(self.client, self.key, part, [row.run_id] if row.run_id else [])
        self.watch.end(row.state, row.metrics, row.reason)
        return row


def points_of(part: Part, rows: list[Row]) -> dict[float, float]:
    """Sparsity -> ratio to dense, of what is known about one search."""
    found = {}
    for row in rows:
        if row.part in (*part.points, part.part) and (ratio := row.ratio) is not None:
            found[float(row.params["sparsity"])] = ratio
    return found


def arranged(plan: Plan, rows: list[Row]) -> list[Row]:
    """What searches have added, among the rows of their grids, by sparsity."""
    for part in plan.refined:
        points = [row for row in rows if row.part in (*part.points, part.part)]
        if points:
            at = rows.index(points[0])
            others = [row for row in rows if row not in points]
            rows = [*others[:at], *sorted(points, key=lambda row: float(row.params["sparsity"])), *others[at:]]
    return rows


def cliffs(plan: Plan, rows: list[Row]) -> list[Cliff]:
    found = []
    for part in plan.refined:
        limit = 1 + part.spec.tolerance
        if part.width and (points := points_of(part, rows)):
            below, above = crossing(points, limit)
            known = above in points and is_done(points, limit, part.width)
            found.append(Cliff(part.part, part.title, part.base, below, above, limit, known))
    return found


def unfinished(plan: Plan, rows: list[Row]) -> list[Row]:
    """A row for each search that did not come to its end, and no row says why."""
    found = []
    for part in plan.refined:
        points, limit = points_of(part, rows), 1 + part.spec.tolerance
        below, above = crossing(points, limit)
        if not is_done(points, limit, part.width or 1) and not any(
            row.part == part.part and row.state == "failed" for row in rows
        ):
            reason = f"it ended between {below:.2%} and {above:.2%}" if points else "nothing of its grid is measured"
            title = f"{part.title}: search"
            found.append(Row(part.part, title, part.base, "missing", part.spec.params(), reason=reason))
    return found


def rows_of(client: store.Client, plan: Plan) -> list[Row]:
    """What MLflow holds of every part: the newest finished run, or the failed one, or nothing."""
    assert plan.run is not None
    key, rows = parts.part_key(plan.run), []
    runs = parts.find_parts(client, key)
    runs.sort(key=lambda run: run.info.status != "FINISHED")  # of those the newest first, as they came
    for part in plan.parts:
        mine = [run for run in runs if part.part in parts.parts_of(run, key)]
        if part.width is None:
            rows.append(row_of(part, mine[0] if mine else None))
            continue
        points: dict[float, Any] = {}
        for run in mine:
            if "sparsity" in run.data.params:  # a process that is killed early leaves a run without
                points.setdefault(float(run.data.params["sparsity"]), run)
        for sparsity in sorted(points):
            spec = replace(part.spec, sparsity=sparsity)
            rows.append(row_of(replace(part, spec=spec, title=spec.title), points[sparsity]))
    return rows


def row_of(part: Part, run: Any | None) -> Row:
    make = partial(Row, part.part, part.title, part.base, params=part.spec.params(), budget=part.budget)
    if run is None:
        return make("missing", reason="no run of it is in the store")
    tags, ticket = run.data.tags, run.data.tags.get("ticket")
    if run.info.status == "FINISHED":
        return make("made", metrics=run.data.metrics, tags=tags, ticket=ticket, run_id=run.info.run_id)
    reason = tags.get("reason", f"its run is {run.info.status}")
    return make("failed", tags=tags, ticket=ticket, run_id=run.info.run_id, reason=reason)


def labelled(client: store.Client, rows: list[Row]) -> list[Row]:
    """With what a person has said of each ticket's text, by whichever run it was read."""
    said = finding.judgements(client)
    found = [said.get((row.tags.get("ticket", ""), row.tags.get("protocol", "")), {}) for row in rows]
    return [replace(row, tags={**row.tags, **person}) for row, person in zip(rows, found, strict=True)]


def conclude(run: runs.Run, plan: Plan, rows: list[Row]) -> Result:
    """The study's run says what came of it."""
    rows = labelled(run.client, [*arranged(plan, rows), *unfinished(plan, rows)])
    result = Result(plan, run.id, rows, cliffs(plan, rows), run.page)
    failed = sum(row.state in ("failed", "missing") for row in rows)
    metrics = {"tickets": float(len(result.rows) - failed), "failed": float(failed)}
    named = [(c.base, c.title) for c in result.cliffs]
    for c in result.cliffs:
        if c.known:  # searches that differ in a tolerance or a window have one title
            more = f"_{c.part}" if named.count((c.base, c.title)) > 1 else ""
            metrics[runs.metric_name(f"cliff_{c.base}_{c.title}{more}")] = (c.below + c.above) / 2
    run.log_metrics(metrics, None, None, int(time.time() * 1000))
    run.tag({"mlflow.note.content": study_table(result, markdown=True)[:8000]})
    if failed:
        run.tag({"outcome": "failed", "reason": f"{failed} of {len(result.rows)} parts are failed or missing"})
        run.finish("FAILED")
    return result


def check_failed(rows: list[Row], fresh: bool = False) -> None:
    """Raises MachineError where a part failed, when all is said."""
    if failed := sum(row.state in ("failed", "missing") for row in rows):
        again = "the same command without --fresh" if fresh else "the same command"
        raise MachineError(f"{failed} of {len(rows)} failed; {again} tries them again")
