"""A study: many tickets of one question, made once each, on one machine or by the tasks of a cluster.

Its run in MLflow (kind=study) holds the plan; every ticket's run says by the tag `study.ID` which part of it it is, whether
it was made for it or found. That is all that a report needs, and all that a second try needs to go on.
"""

import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lottery import job, publishing, tracking
from lottery.design import Study
from lottery.failures import known_failure
from lottery.home import home
from lottery.planning import Part, Plan, crossing, halfway, make_plan
from lottery.progress import say
from lottery.shared import Shared
from lottery.spec import InputError, MachineError, Spec, nearest
from lottery.tables import study_table
from lottery.watching import Watch, watching

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


def prepare(study: Study, fresh: bool = False, yes: bool = False) -> tuple[Plan, Shared]:
    """What will be done, and whether there is room for it. Raises InputError where a person has to say yes first."""
    shared = Shared()
    plan = replace(make_plan(study, shared), fresh=fresh)
    folder = home()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    searches = f" and {len(plan.refined)} searches for a sparsity" if plan.refined else ""
    say(
        f"{plan.title}: {len(plan.tickets)} tickets{searches}, {plan.disk_bytes / 1e9:,.2f} GB on disk in all; "
        f"{free / 1e9:,.1f} GB are free in {home()}"
    )
    for left in plan.left_out:
        say(f"left out, {left['model']}: {left['reason']}")
    if plan.disk_bytes > min(free, MUCH) and not yes:
        raise InputError(
            f"study={study.name}: its tickets take {plan.disk_bytes / 1e9:,.1f} GB; say --yes if there is room for them, "
            f"or give fewer models, or storage=mask"
        )
    return plan, shared


def run(plan: Plan, shared: Shared) -> Result:
    """Every part of a study, in this process: what has finished before is found, not made again.

    A ticket that fails is reported, and the others go on. Raises MachineError where the tracking store goes away: the same
    command then goes on where it was.
    """
    client = tracking.connect()
    publishing.close_dead(client)
    job.ready(plan.parts[0].spec, shared)  # a text, a device, a window that cannot serve is said once, and at once
    with open_study(client, plan) as run:
        plan = replace(plan, run=run.id)
        titles = [f"{p.base} {p.title}" for p in plan.parts if p.width is None]
        rows: list[Row] = []
        with watching(titles) as watch:
            doer = Doer(client, plan, shared, watch)
            for part in plan.parts:
                rows += doer.do(part, rows)
        result = Result(plan, run.id, arranged(plan, rows), cliffs(plan, rows), run.page)
        conclude(run, result)
    return result


def run_part(plan: Plan, name: str) -> list[Row]:
    """One part of a study whose run is there already: what one task of a cluster does."""
    parts = {part.part: part for part in plan.parts}
    if name not in parts:
        raise InputError(f"part={name}: {nearest(name, [*parts, 'report'])}")
    part = parts[name]
    client = tracking.connect()
    todo = [*(parts[point] for point in part.points), part]  # a search finds its grid, or makes what is missing of it
    rows: list[Row] = []
    with watching([f"{p.base} {p.title}" for p in todo if p.width is None]) as watch:
        doer = Doer(client, plan, Shared(), watch)
        for each in todo:
            rows += doer.do(each, rows)
    return rows


def close(plan: Plan) -> Result:
    """The end of a study whose parts were done by others: its run is finished with what they have left in MLflow."""
    client = tracking.connect()
    publishing.close_dead(client)
    with open_study(client, plan) as run:
        rows = rows_of(client, replace(plan, run=run.id))
        result = Result(plan, run.id, arranged(plan, rows), cliffs(plan, rows), run.page)
        conclude(run, result)
    return result


def begin(plan: Plan, yes: bool = False) -> Plan:
    """The study's run, begun for the tasks of a cluster to come. Raises InputError where it was before, and has not ended,
    unless a person has said `yes`: its tasks and the new ones would make tickets twice."""
    client = tracking.connect()
    publishing.close_dead(client)
    before = tracking.find_study(client, plan.id)
    if before is not None and before.info.status == "SCHEDULED" and not yes:
        raise InputError(
            f"study={plan.study.name}: it was submitted before, and its last job has not ended it (run {before.info.run_id}); "
            f"wait for it, or say --yes if its jobs are gone"
        )
    with open_study(client, plan) as run:
        run.finish("SCHEDULED")
        return replace(plan, run=run.id)


def give_up(plan: Plan) -> None:
    """The run of a study that no cluster took."""
    client = tracking.connect()
    if plan.run:
        client.set_terminated(plan.run, "FAILED")


@contextmanager
def open_study(client: tracking.Client, plan: Plan) -> Iterator[tracking.Run]:
    """The study's run: the one that `mlflow run` has opened, or the newest of the same study, or a new one."""
    tags = {"kind": "study", "study": plan.study.name, "study_id": plan.id}
    params = {"name": plan.study.name, "models": ",".join(plan.study.models)} | {
        name: ",".join(values) for name, values in plan.study.parameters.items()
    }
    params |= {"budget": ",".join(f"{b:g}" for b in plan.study.budget) or "none"}
    resume = plan.run or tracking.adopted()
    if resume is None and not plan.fresh:
        before = tracking.find_study(client, plan.id)
        resume = before.info.run_id if before is not None else None
    with tracking.open_run(client, plan.id, plan.title, params, tags, resume=resume, adopt=False) as run:
        run.log_files({"plan.json": replace(plan, run=run.id).json(), "study.yaml": plan.study.yaml()})
        yield run


class Doer:
    """Makes the parts of one study, or finds them."""

    def __init__(self, client: tracking.Client, plan: Plan, shared: Shared, watch: Watch) -> None:
        self.client, self.plan, self.shared, self.watch = client, plan, shared, watch
        self.key = f"study.{plan.id}"
        self.without: dict[str, str] = {}  # models whose dense baseline failed, and why

    def do(self, part: Part, known: list[Row]) -> list[Row]:
        """`known`: what became of the parts before it."""
        if part.width is not None:
            return self.search(part, known)
        if part in self.plan.baselines:
            return [self.dense(part)]
        return [self.ticket(part.part, part.spec, part.base, part.budget)]

    def dense(self, part: Part) -> Row:
        def work(within: dict[str, str]) -> Row:
            ready = job.ready(part.spec, self.shared)
            found, run_id, made = job.run_dense(ready, self.plan.study.name, within)
            if run_id and not made:
                self.client.set_tag(run_id, self.key, part.part)
            state = "made" if made else "found"
            return Row(part.part, "dense", part.base, state, part.spec.params(), found.metrics, {}, None, run_id)

        row = self.attempt(part.part, part.spec, part.base, "dense", None, work)
        if row.reason:
            self.without[part.spec.model] = row.reason
        return row

    def ticket(self, part: str, spec: Spec, base: str, budget: float | None = None) -> Row:
        def work(within: dict[str, str]) -> Row:
            if spec.model in self.without:
                raise MachineError(f"its dense baseline failed: {self.without[spec.model]}")
            ready = job.ready(spec, self.shared)
            only = self.plan.run if self.plan.fresh else None
            before = tracking.find_finished(self.client, ready.ticket, ready.tags.get("protocol"), spec, only)
            if before is not None:
                self.client.set_tag(before.info.run_id, self.key, part)
                data = before.data
                return Row(
                    part, spec.title, base, "found", spec.params(), data.metrics, data.tags, ready.ticket,
                    before.info.run_id, budget,
                )  # fmt: skip
            made = job.run(ready, study=self.plan.study.name, within=within)
            return Row(
                part, spec.title, base, "made", spec.params(), made.metrics, made.tags, made.ticket, made.run_id, budget
            )

        return self.attempt(part, spec, base, spec.title, budget, work)

    def search(self, part: Part, known: list[Row]) -> list[Row]:
        """Tickets at the sparsities that narrow the crossing down, halving what is not known."""
        assert part.width is not None
        rows: list[Row] = []
        limit = 1 + part.spec.tolerance
        while True:
            points = points_of(part, [*known, *rows])
            sparsity = halfway(*crossing(points, limit), part.width)
            if sparsity is None or not points:
                return rows
            row = self.ticket(part.part, replace(part.spec, sparsity=sparsity), part.base)
            rows.append(row)
            if row.ratio is None:  # it failed, and would again
                return rows

    def attempt(
        self, part: str, spec: Spec, base: str, title: str, budget: float | None, work: Callable[[dict[str, str]], Row]
    ) -> Row:
        """What `work` gives; where it fails, a row that says so, and a failed run in MLflow."""
        self.watch.begin(f"{base} {title}")
        began = int(time.time() * 1000)
        within = {self.key: part} | ({"mlflow.parentRunId": self.plan.run} if self.plan.run else {})
        try:
            row = work(within)
        except Exception as e:
            tracking.connect()  # a store that is away is the end: MachineError
            known = known_failure(e)
            if known is None:  # a defect of ours: the others go on all the same
                traceback.print_exc(file=sys.stderr)
            reason = known[0] if known else f"{type(e).__name__}: {e}"
            kind = {"kind": "dense" if part.startswith("dense") else "ticket", "base": base}
            tags = within | kind | {"study": self.plan.study.name, "outcome": "failed", "reason": reason[:4000]}
            run_id = tracking.failed_run(self.client, title, spec.params(), tags, self.key, part, began)
            row = Row(part, title, base, "failed", spec.params(), {}, tags, None, run_id, budget, reason)
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
        if points := points_of(part, rows):
            found.append(Cliff(part.part, part.title, part.base, *crossing(points, limit), limit))
    return found


def rows_of(client: tracking.Client, plan: Plan) -> list[Row]:
    """What MLflow holds of every part: the newest finished run, or the failed one, or nothing."""
    runs = tracking.find_parts(client, plan.id)
    if plan.fresh:
        runs = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == plan.run]
    key, rows = f"study.{plan.id}", []
    runs.sort(key=lambda run: run.info.status != "FINISHED")  # of those the newest first, as they came
    for part in plan.parts:
        mine = [run for run in runs if run.data.tags[key] == part.part]
        if part.width is None:
            rows.append(row_of(part, mine[0] if mine else None))
            continue
        points: dict[float, Any] = {}
        for run in mine:
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


def conclude(run: tracking.Run, result: Result) -> None:
    """The study's run says what came of it."""
    failed = sum(row.state in ("failed", "missing") for row in result.rows)
    found = {f"cliff_{c.base}_{c.title}": (c.below + c.above) / 2 for c in result.cliffs}
    names = {name: tracking.metric_name(name) for name in found}
    metrics = {"tickets": float(len(result.rows) - failed), "failed": float(failed)}
    run.log_metrics(metrics | {names[k]: v for k, v in found.items()}, None, None, int(time.time() * 1000))
    run.tag({"mlflow.note.content": study_table(result, markdown=True)[:8000]})
    if failed:
        run.tag({"outcome": "failed", "reason": f"{failed} of {len(result.rows)} parts are failed or missing"})
        run.finish("FAILED")


def check_failed(rows: list[Row]) -> None:
    """Raises MachineError where a part failed, when all is said."""
    if failed := sum(row.state in ("failed", "missing") for row in rows):
        raise MachineError(f"{failed} of {len(rows)} failed; the same command tries them again")
