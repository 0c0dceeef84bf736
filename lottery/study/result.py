"""This file holds a study's result: one row for each ticket, and the sparsities at which curves cross the limit."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lottery.errors import MachineError
from lottery.registry import labels, parts, store
from lottery.study.bisection import find_bracket, is_done
from lottery.study.planning import Part, Plan


@dataclass(frozen=True)
class PartResult:
    """The result of one part. `state` is made, found (an earlier run made it), failed or missing."""

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
        """The ratio of the perplexity to the dense one; NaN after an overflow, None if it is not known."""
        overflowed = self.tags.get("outcome") == "overflow"
        return self.metrics.get("perplexity_ratio", math.nan if overflowed else None)


@dataclass(frozen=True)
class Cliff:
    """The two sparsities between which the ratio to dense crosses `limit`."""

    part: str
    title: str
    base: str
    below: float
    above: float
    limit: float
    known: bool  # whether the two are as close as asked and the upper one was measured


@dataclass(frozen=True)
class StudyResult:
    """The result of a whole study."""

    plan: Plan
    run_id: str
    rows: list[PartResult]  # the order is that of the plan, with the tickets of a search among those of its grid
    cliffs: list[Cliff]
    page: str | None = None

    def json(self) -> dict[str, Any]:
        about = {"study": self.plan.study.name, "study_id": self.plan.id, "run_id": self.run_id}
        return about | {
            "tickets": [row.__dict__ for row in self.rows],
            "cliffs": [cliff.__dict__ for cliff in self.cliffs],
            "left_out": self.plan.left_out,
        }


def ratio_by_sparsity(part: Part, rows: list[PartResult]) -> dict[float, float]:
    """Returns sparsity -> ratio to dense for all that is known about one search."""
    found = {}
    for row in rows:
        if row.part in (*part.points, part.part) and (ratio := row.ratio) is not None:
            found[float(row.params["sparsity"])] = ratio
    return found


def merge_search_rows(plan: Plan, rows: list[PartResult]) -> list[PartResult]:
    """Returns the rows in another order: the tickets of a search stand among those of its grid, sorted by sparsity."""
    for part in plan.refined:
        points = [row for row in rows if row.part in (*part.points, part.part)]
        if points:
            at = rows.index(points[0])
            others = [row for row in rows if row not in points]
            rows = [*others[:at], *sorted(points, key=lambda row: float(row.params["sparsity"])), *others[at:]]
    return rows


def cliffs(plan: Plan, rows: list[PartResult]) -> list[Cliff]:
    """Returns a cliff for each search that has a known ratio."""
    found = []
    for part in plan.refined:
        limit = 1 + part.spec.tolerance
        if part.width and (points := ratio_by_sparsity(part, rows)):
            below, above = find_bracket(points, limit)
            known = above in points and is_done(points, limit, part.width)
            found.append(Cliff(part.part, part.title, part.base, below, above, limit, known))
    return found


def unfinished(plan: Plan, rows: list[PartResult]) -> list[PartResult]:
    """Returns a row for each search that did not reach its end and that has no failed row."""
    found = []
    for part in plan.refined:
        points, limit = ratio_by_sparsity(part, rows), 1 + part.spec.tolerance
        below, above = find_bracket(points, limit)
        if not is_done(points, limit, part.width or 1) and not any(
            row.part == part.part and row.state == "failed" for row in rows
        ):
            reason = f"it ended between {below:.2%} and {above:.2%}" if points else "nothing of its grid is measured"
            title = f"{part.title}: search"
            found.append(PartResult(part.part, title, part.base, "missing", part.spec.params(), reason=reason))
    return found


def read_rows(client: store.Client, plan: Plan) -> list[PartResult]:
    """Returns the rows of all parts from MLflow: the newest finished run of each part, else a failed one, else none."""
    assert plan.run is not None
    key, rows = parts.part_key(plan.run), []
    runs = parts.find_parts(client, key)
    runs.sort(key=lambda run: run.info.status != "FINISHED")  # the sort is stable: the newest run stays first
    for part in plan.parts:
        mine = [run for run in runs if part.part in parts.parts_of(run, key)]
        if part.width is None:
            rows.append(row_from_run(part, mine[0] if mine else None))
            continue
        points: dict[float, Any] = {}
        for run in mine:
            if "sparsity" in run.data.params:  # the run of a process that was killed early may have no params
                points.setdefault(float(run.data.params["sparsity"]), run)
        for sparsity in sorted(points):
            spec = replace(part.spec, sparsity=sparsity)
            rows.append(row_from_run(replace(part, spec=spec, title=spec.title), points[sparsity]))
    return rows


def row_from_run(part: Part, run: Any | None) -> PartResult:
    """Returns the row of a part whose run is the MLflow entity `run`; None: there is no run."""
    make = partial(PartResult, part.part, part.title, part.base, params=part.spec.params(), budget=part.budget)
    if run is None:
        return make("missing", reason="no run of it is in the store")
    tags, ticket = run.data.tags, run.data.tags.get("ticket")
    if run.info.status == "FINISHED":
        return make("made", metrics=run.data.metrics, tags=tags, ticket=ticket, run_id=run.info.run_id)
    reason = tags.get("reason", f"its run is {run.info.status}")
    return make("failed", tags=tags, ticket=ticket, run_id=run.info.run_id, reason=reason)


def labelled(client: store.Client, rows: list[PartResult]) -> list[PartResult]:
    """Returns the rows with the labels of their tickets, whichever run a person labelled."""
    by_ticket = labels.labels_by_ticket(client)
    found = [by_ticket.get((row.tags.get("ticket", ""), row.tags.get("protocol", "")), {}) for row in rows]
    return [replace(row, tags={**row.tags, **label}) for row, label in zip(rows, found, strict=True)]


def check_failed(rows: list[PartResult], fresh: bool = False) -> None:
    """Raises MachineError if a part failed. It is called at the very end, after all results were shown."""
    if failed := sum(row.state in ("failed", "missing") for row in rows):
        again = "the same command without --fresh" if fresh else "the same command"
        raise MachineError(f"{failed} of {len(rows)} failed; {again} tries them again")
