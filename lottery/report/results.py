"""Reads the runs of a study, or of a filter, as a data frame with one row per ticket. It needs neither torch nor
transformers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from lottery.errors import InputError
from lottery.registry.labels import labels_by_ticket
from lottery.registry.parts import find_parts, part_key, parts_of
from lottery.registry.store import Client, connect, every_page
from lottery.report.artifacts import read_array, read_json
from lottery.report.frames import frame, protocol_lines, records, run_to_row, string_list, to_number
from lottery.report.study_plans import Study, absence, as_planned, newest_per_sparsity, planned, read_study, unfinished
from lottery.study.titles import tell_apart

ABSENT = ("study", "part", "title", "base", "state", "reason")
LEFT_OUT = ("study", "model", "target", "reason")


@dataclass(frozen=True)
class Results:
    """What studies or a filter found. `rows`: the dense bases and the measured tickets; `absent`: what was planned but
    has no finished run (missing, failed, killed, running), with the reason; `left_out`: what the plan itself left out.
    Artifacts are read when a method asks for them."""

    client: Client | None  # None: the results were read from files (saved.py)
    studies: tuple[Study, ...]
    rows: pd.DataFrame
    absent: pd.DataFrame
    left_out: pd.DataFrame
    protocols: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (id, base) -> a line for people

    @property
    def tickets(self) -> pd.DataFrame:
        return self.rows[self.rows["kind"] == "ticket"]

    def nll(self, run_id: str) -> np.ndarray | None:
        """Returns the mean NLL per token of each evaluation window, [N], or None if the run has none."""
        return read_array(self.client, run_id, "nll_per_window.npy")

    def samples(self, run_id: str) -> list[dict[str, str]]:
        """Returns for each sample its prompt and text, and the dense base's text if the same run measured it."""
        found = read_json(self.client, run_id, "samples.json")
        if not isinstance(found, list):
            return []
        return [{str(k): str(v) for k, v in s.items()} for s in found if isinstance(s, dict) and "prompt" in s]

    def layer_shares(self, run_id: str) -> dict[int, float]:
        """Returns layer -> the share of its targeted weights that a ticket was asked to lose; {} if that is not recorded."""
        found = read_json(self.client, run_id, "layers.json")
        shares = found.get("shares") if isinstance(found, dict) else None
        known = shares.items() if isinstance(shares, dict) else ()
        return {int(k): float(v) for k, v in known if k.isdigit() and isinstance(v, (int, float))}

    def dense_metrics(self, run_id: str) -> dict[str, float]:
        """Returns the dense base's metrics as the same process measured them (a study measures them once). Speeds are
        compared with these."""
        found = read_json(self.client, run_id, "measurements.json")
        dense = found.get("dense") if isinstance(found, dict) else None
        return {k: float(v) for k, v in dense.items() if isinstance(v, (int, float))} if isinstance(dense, dict) else {}


def load(client: Client, study: str = "", filter: str = "") -> Results:
    """Returns what the studies in `study` found, or the finished tickets that fulfil `filter`; without both, the newest
    study.

    `study`: names (the newest run counts), ids of studies, or ids of their runs, separated by commas. `filter`:
    MLflow's syntax. Raises InputError for an unknown study (the message lists the known ones), for a filter that MLflow
    does not understand, and if nothing was measured.
    """
    experiments = [e.experiment_id for e in every_page(client.search_experiments)]
    if filter and study:
        raise InputError(f"filter={filter}: study={study} is given too; give one of them")
    if filter:
        return with_dense(client, experiments, load_by_filter(client, experiments, filter))
    names = [name.strip() for name in study.split(",") if name.strip()]
    found = [find_study(client, experiments, name) for name in names or [""]]
    unique = {run.info.run_id: read_study(client, run) for run in found}
    return with_dense(client, experiments, load_studies(client, experiments, tuple(unique.values())))


def search_tickets(filter: str = "") -> pd.DataFrame:
    """Returns the finished ticket runs of the tracking store, one row each; params, metrics and tags are columns.

    The store is the one that MLFLOW_TRACKING_URI names. `filter` has MLflow's syntax, for example
    "metrics.perplexity_ratio < 1.1 and params.target = 'late'". Raises InputError for a filter that MLflow does not
    understand or that no ticket fulfils.
    """
    client = connect(read_only=True)
    return load_by_filter(client, [e.experiment_id for e in every_page(client.search_experiments)], filter).rows


def search(client: Client, experiments: Sequence[str], query: str) -> list[Any]:
    """Returns all runs that fulfil the query, the newest first."""
    order = ["attributes.start_time DESC"]
    return every_page(partial(client.search_runs, list(experiments), query, max_results=1000, order_by=order))


def find_study(client: Client, experiments: Sequence[str], name: str) -> Any:
    """Returns the newest run of a study. Raises InputError if there is none; the message lists the known studies."""
    runs = search(client, experiments, "tags.kind = 'study'")
    for run in runs:
        tags = run.data.tags
        if not name or name in (tags.get("study"), tags.get("study_id"), run.info.run_id):
            return run
    known = dict.fromkeys(run.data.tags.get("study", run.info.run_id) for run in runs)
    if not known:
        raise InputError(
            f"study={name}: this tracking store has no study; make one: lottery study locate"
            if name
            else "study: this tracking store has none; make one (lottery study locate), or give a filter of tickets"
        )
    raise InputError(f"study={name}: no such study; known: {', '.join(known)}; or give the id of a study's run")


def load_studies(client: Client, experiments: Sequence[str], studies: tuple[Study, ...]) -> Results:
    """Returns what the runs of the studies' parts say. Raises InputError if no ticket is measured."""
    rows, absent, left_out = [], [], []
    protocols: dict[tuple[str, str], str] = {}
    for study in studies:
        key = part_key(study.run_id)
        parts: dict[str, list[Any]] = {}
        for run in find_parts(client, key):
            if run.data.tags.get("kind") in ("ticket", "dense"):
                for part in parts_of(run, key):
                    parts.setdefault(part, []).append(run)
        plans = {str(p.get("part")): p for p in planned(study, "baselines", "tickets", "refined")}
        of_part: dict[str, list[dict[str, Any]]] = {}
        for part in [*plans, *sorted(set(parts) - set(plans))]:
            plan, runs = plans.get(part, {}), parts.get(part, [])
            budget = plan.get("budget")
            done = [run for run in runs if run.info.status == "FINISHED"]
            for run in newest_per_sparsity(done) if part.startswith("refine-") else done[:1]:
                found = as_planned(run_to_row(run), plan)
                of_part.setdefault(part, []).append(found)
                rows.append(found | {"study": study.name, "part": part, "budget": to_number(budget)})
                protocols |= protocol_lines(run, found.get("base"))
            if part.startswith("refine-"):
                ended = [r for p in (part, *string_list(plan.get("points"))) for r in of_part.get(p, [])]
                absent += [{"study": study.name, "part": part, **a} for a in unfinished(plan, runs, ended)]
            elif not done:
                absent.append({"study": study.name, "part": part, **absence(plan, runs)})
        for entry in planned(study, "left_out"):
            known = {name: str(entry.get(name, "")) for name in LEFT_OUT}
            left_out.append(known | {"study": study.name})
    results = Results(
        client,
        studies,
        frame(labelled(client, told_apart(rows))),
        pd.DataFrame(absent, columns=list(ABSENT)),
        pd.DataFrame(left_out, columns=list(LEFT_OUT)),
        protocols,
    )
    if results.tickets.empty:
        names, counts = ", ".join(s.name for s in studies), results.absent.groupby("state").size()
        states = "; ".join(f"{count} {state}" for state, count in counts.items()) or "none planned"
        raise InputError(f"study={names}: none of its tickets is measured ({states}); let the study run first")
    return results


def load_by_filter(client: Client, experiments: Sequence[str], filter: str) -> Results:
    query = "tags.kind = 'ticket' and attributes.status = 'FINISHED'"
    try:
        runs = search(client, experiments, f"{query} and {filter}" if filter else query)
    except MlflowException as e:
        raise InputError(f"filter={filter}: {' '.join(str(e).split())[:300]}") from e
    if not runs:
        raise InputError(
            f"filter={filter}: no finished ticket fulfils it; give another filter"
            if filter
            else "filter: this tracking store has no finished ticket"
        )
    empty = (pd.DataFrame(columns=list(ABSENT)), pd.DataFrame(columns=list(LEFT_OUT)))
    protocols: dict[tuple[str, str], str] = {}
    for run in runs:
        protocols |= protocol_lines(run)
    rows = labelled(client, told_apart([with_source(run_to_row(run)) for run in reversed(runs)]))
    return Results(client, (), frame(rows), *empty, protocols)


def told_apart(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows with titles that tell the tickets of one base and protocol apart."""
    titles = tell_apart([((r.get("base"), r.get("protocol")), str(r["title"]), r) for r in rows])
    return [{**r, "title": title} for r, title in zip(rows, titles, strict=True)]


def with_source(found: dict[str, Any]) -> dict[str, Any]:
    """Marks a ticket that was pruned from a registered ticket, so that it is not compared with tickets of the base:
    weights were removed before its own pruning."""
    source = str(found.get("model") or "")
    if not source.startswith("models:/"):
        return found
    return found | {"source": f"of {source}", "title": f"{found['title']} of {source}"}


def with_dense(client: Client, experiments: Sequence[str], results: Results) -> Results:
    """Adds the dense base of every model and protocol, even if a study found it measured already and did not tag it. A
    ticket of two studies is kept once, but under each name that a study has for it."""
    rows = results.rows.drop_duplicates(["run_id", "base", "target", "sparsity"])
    present = {(base, protocol) for base, protocol, kind in zip(rows["base"], rows["protocol"], rows["kind"], strict=True)
            if kind == "dense"}  # fmt: skip
    missing = dict.fromkeys(
        (base, protocol)
        for base, protocol in zip(rows["base"], rows["protocol"], strict=True)
        if (base, protocol) not in present and isinstance(protocol, str) and re.fullmatch("[0-9a-f]{12}", protocol)
    )
    more: list[Mapping[str, Any]] = []
    protocols = dict(results.protocols)
    for protocol in dict.fromkeys(protocol for _, protocol in missing):
        query = f"tags.kind = 'dense' and attributes.status = 'FINISHED' and tags.protocol = '{protocol}'"
        runs = search(client, experiments, query)
        for base in [b for b, p in missing if p == protocol]:
            if found := [run for run in runs if run.data.tags.get("base") == base]:
                more.append(run_to_row(found[0]) | {"study": "", "part": "dense"})
                protocols |= protocol_lines(found[0])
    rows = frame([*more, *records(rows)])
    return Results(results.client, results.studies, rows, results.absent, results.left_out, protocols)


def labelled(client: Client, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Adds the label that a person gave to each ticket's samples, in whichever run the person read them."""
    labels = labels_by_ticket(client)
    return [{**r, **labels.get((r.get("ticket", ""), r.get("protocol", "")), {})} for r in rows]
