"""This file makes each part of a study, or finds it in the tracking store."""

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from lottery.errors import MachineError, known_failure
from lottery.files.locks import process_lock
from lottery.jobs.dense import run_dense
from lottery.jobs.job import find_existing_run, prepare_job
from lottery.jobs.run import run as run_ticket
from lottery.measuring.cache import Cache
from lottery.registry import parts, store
from lottery.spec import Spec, run_name
from lottery.study.bisection import find_bracket, next_sparsity
from lottery.study.planning import Part, Plan, baseline_key
from lottery.study.progress import StudyProgress
from lottery.study.result import PartResult, ratio_by_sparsity


class PartRunner:
    """Makes or finds the parts of one study."""

    def __init__(self, client: store.Client, plan: Plan, cache: Cache, watch: StudyProgress) -> None:
        self.client, self.plan, self.cache, self.watch = client, plan, cache, watch
        assert plan.run is not None
        self.run, self.key = plan.run, parts.part_key(plan.run)
        self.failed_baselines: dict[tuple[Any, ...], str] = {}  # dense baselines that failed, and why

    def run_part(self, part: Part, known: list[PartResult]) -> list[PartResult]:
        """Returns the rows of a part; a search has several. `known` holds the rows of the parts before it."""
        if part.width is not None:
            return self.search(part, known)
        if part in self.plan.baselines:
            return [self.dense(part)]
        return [self.ticket(part.part, part.title, part.spec, part.base, part.budget)]

    def dense(self, part: Part) -> PartResult:
        def work(extra_tags: dict[str, str]) -> PartResult:
            job = prepare_job(part.spec, self.cache)
            _, run_id, made = run_dense(job, self.plan.study.name, extra_tags)
            state, params = "made" if made else "found", part.spec.params()
            if run_id is None:
                reason = "the dense base is not on this machine, and no run has measured it under this protocol"
                return PartResult(part.part, "dense", part.base, "missing", params, reason=reason)
            data = self.client.get_run(run_id).data
            return PartResult(part.part, "dense", part.base, state, params, data.metrics, data.tags, None, run_id)

        row = self.attempt(part.part, part.spec, part.base, "dense", None, work)
        if row.state == "failed":
            self.failed_baselines[baseline_key(part.spec)] = row.reason or ""
        return row

    def ticket(self, part: str, title: str, spec: Spec, base: str, budget: float | None = None) -> PartResult:
        def work(extra_tags: dict[str, str]) -> PartResult:
            if (reason := self.failed_baselines.get(baseline_key(spec))) is not None:
                raise MachineError(f"its dense baseline failed: {reason}")
            job = prepare_job(spec, self.cache)
            about = partial(PartResult, part, title, base, params=spec.params(), ticket=job.ticket, budget=budget)
            with process_lock(f"part-{job.ticket}"):  # another study's process may be making the same ticket
                before = find_existing_run(self.client, job, self.run if self.plan.fresh else None)
                if before is not None:
                    data = before.data
                    return about("found", metrics=data.metrics, tags=data.tags, run_id=before.info.run_id)
                made = run_ticket(job, study=self.plan.study.name, extra_tags=extra_tags)
            return about("made", metrics=made.metrics, tags=made.tags, run_id=made.run_id)

        return self.attempt(part, spec, base, title, budget, work)

    def search(self, part: Part, known: list[PartResult]) -> list[PartResult]:
        """Makes the tickets of a search, each at a sparsity that halves the range in which the crossing lies."""
        assert part.width is not None
        rows: list[PartResult] = []
        limit = 1 + part.spec.tolerance
        while points := ratio_by_sparsity(part, [*known, *rows]):
            sparsity = next_sparsity(*find_bracket(points, limit), part.width)
            if sparsity is None:
                break
            spec = replace(part.spec, sparsity=sparsity)
            row = self.ticket(part.part, spec.title, spec, part.base)
            rows.append(row)
            if row.ratio is None:  # the ticket failed and would fail again
                break
        parts.set_part_runs(self.client, self.key, part.part, [row.run_id for row in rows if row.run_id])
        return rows

    def attempt(
        self,
        part: str,
        spec: Spec,
        base: str,
        title: str,
        budget: float | None,
        work: Callable[[dict[str, str]], PartResult],
    ) -> PartResult:
        """Returns the row that `work` makes. If it fails, the row says why, and MLflow gets a failed run.

        Raises MachineError if the tracking store does not answer.
        """
        self.watch.begin(f"{base} {title}")
        began = int(time.time() * 1000)
        extra_tags = {self.key: part, "mlflow.parentRunId": self.run}
        try:
            row = work(extra_tags)
        except Exception as e:  # whatever one ticket's failure is, the others must go on
            try:
                store.connect()
            except MachineError as away:
                # Without a store the study ends. If the ticket is kept on disk, its own error says how to send it later.
                raise (e if isinstance(e, MachineError) else away) from e
            known = known_failure(e)
            if known is None:  # a defect of lottery, whose traceback is shown; the other tickets still go on
                traceback.print_exc(file=sys.stderr)
            reason = known[0] if known else f"{type(e).__name__}: {e}"
            kind = {"kind": "dense" if part.startswith("dense") else "ticket", "base": base}
            tags = extra_tags | kind | {"study": self.plan.study.name, "outcome": "failed", "reason": reason[:4000]}
            name = run_name(base.removesuffix(f" ({spec.model})"), title)
            run_id = parts.ensure_failed_run(self.client, name, spec.params(), tags, self.key, part, began)
            row = PartResult(part, title, base, "failed", spec.params(), {}, tags, None, run_id, budget, reason)
        if not part.startswith("refine"):  # `search` itself records at its end which runs belong to it
            parts.set_part_runs(self.client, self.key, part, [row.run_id] if row.run_id else [])
        self.watch.end(row.state, row.metrics, row.reason)
        return row
