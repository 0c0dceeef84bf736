"""Compares what a study planned with the runs that it has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lottery.registry.store import Client
from lottery.report.artifacts import read_json
from lottery.report.frames import ticket_title, to_number
from lottery.study.bisection import find_bracket, is_done


@dataclass(frozen=True)
class Study:
    """The run that stands for a study, and its plan; `plan` is None if plan.json is missing or cannot be read."""

    run_id: str
    name: str
    study_id: str
    status: str
    started: pd.Timestamp
    tags: dict[str, str]
    plan: dict[str, Any] | None

    @property
    def question(self) -> str:
        return str((self.plan or {}).get("question") or "")


def read_study(client: Client, run: Any) -> Study:
    tags = run.data.tags
    plan = read_json(client, run.info.run_id, "plan.json")
    return Study(
        run_id=run.info.run_id,
        name=tags.get("study", run.info.run_name or ""),
        study_id=tags.get("study_id", ""),
        status=run.info.status,
        started=pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
        tags=dict(tags),
        plan=plan if isinstance(plan, dict) else None,
    )


def planned(study: Study, *kinds: str) -> list[dict[str, Any]]:
    """Returns the plan's parts of these kinds, in its order. Anybody can have edited the artifact, so anything else is
    skipped."""
    found: list[dict[str, Any]] = []
    for kind in kinds:
        given = (study.plan or {}).get(kind)
        found += [p for p in given if isinstance(p, dict)] if isinstance(given, list) else []
    return found


def as_planned(found: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's row under the names of the planned part. One ticket has several names (`late` and `all@late`),
    and the run may have been made under another one; two models may have the same name."""
    params = plan.get("params")
    asked = params if isinstance(params, dict) and found["kind"] == "ticket" else {}
    row = dict(found) | ({"base": str(plan["base"])} if plan.get("base") else {})
    if asked.get("target"):
        row["target"] = str(asked["target"])
    if not str(plan.get("part")).startswith("refine-") and (sparsity := to_number(asked.get("sparsity"))) is not None:
        row["sparsity"] = sparsity
    return row | ({"title": ticket_title(row)} if asked else {})


def unfinished(plan: Mapping[str, Any], runs: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns what is missing of a search for the cliff that did not finish: its failed tickets, or else one line for
    the whole search. `rows`: the tickets that the search knows."""
    params = plan.get("params")
    tolerance = to_number(params.get("tolerance")) if isinstance(params, dict) else None
    width, measured = to_number(plan.get("width")), {}
    for r in rows:
        overflowed = r.get("outcome") == "overflow"
        if (ratio := r.get("perplexity_ratio", math.nan if overflowed else None)) is not None:
            measured[to_number(r.get("sparsity")) or 0.0] = ratio
    limit = 1 + (0.1 if tolerance is None else tolerance)
    if width is None or is_done(measured, limit, width):
        return []
    if failed := [run for run in runs if run.info.status != "FINISHED" and "sparsity" in run.data.params]:
        return [absence({"base": plan.get("base")}, [run]) for run in failed]
    below, above = find_bracket(measured, limit)
    reason = f"it ended between {below:.2%} and {above:.2%}" if measured else "nothing of its grid is measured"
    return [absence(plan, []) | {"title": f"{plan.get('title')}: search", "reason": reason}]


def newest_per_sparsity(runs: Sequence[Any]) -> list[Any]:
    """Returns the newest run at each sparsity, in the order of sparsity. `runs`: those of a part that searches, newest
    first."""
    newest: dict[float, Any] = {}
    for run in runs:
        newest.setdefault(to_number(run.data.params.get("sparsity")) or 0.0, run)
    return [newest[sparsity] for sparsity in sorted(newest)]


def absence(plan: Mapping[str, Any], runs: Sequence[Any]) -> dict[str, str]:
    """Returns the title, base, state and reason of a part that has no finished run."""
    state, reason = "missing", "it was not started, or it left no run"
    if runs:
        tags, state = runs[0].data.tags, str(runs[0].info.status).lower()
        reason = tags.get("reason") or tags.get("outcome") or "no reason is recorded"
        if state in ("running", "scheduled"):
            reason = "its run has not ended"
    params = plan.get("params")
    words = params if isinstance(params, dict) else runs[0].data.params if runs else {}
    title = str(plan.get("title") or (ticket_title(words) if "target" in words else "dense"))
    base = str(plan.get("base") or (runs[0].data.tags.get("base", "") if runs else ""))
    return {"title": title, "base": base, "state": state, "reason": reason}
