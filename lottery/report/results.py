"""A study's runs as data: one row a ticket, read from MLflow alone. No model code: neither torch nor transformers.

One of the files that say mlflow.
"""

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from lottery.errors import InputError
from lottery.registry.finding import judgements
from lottery.registry.parts import find_parts, part_key, parts_of
from lottery.registry.store import STORE_ERRORS, Client, every_page
from lottery.study.bisection import crossing, is_done

PARAMS = ("model", "target", "sparsity", "method", "scope", "pattern", "quantize", "storage", "dataset", "window", "limit",
          "dtype", "runtime", "measure", "control", "tolerance", "seed", "register")  # fmt: skip
NUMBERS = ("sparsity", "tolerance", "control", "seed")  # params that are numbers
TAGS = ("ticket", "protocol", "base", "family", "hardware", "device", "winner", "beats_control", "coherent", "note",
        "outcome", "limited")  # fmt: skip
METRICS = ("perplexity", "perplexity_lo", "perplexity_hi", "perplexity_ratio", "perplexity_ratio_lo",
           "perplexity_ratio_hi", "bits_per_byte", "control_perplexity", "control_perplexity_lo", "control_perplexity_hi",
           "control_ratio", "control_ratio_lo", "control_ratio_hi", "sparsity_target", "sparsity_prunable",
           "sparsity_model", "parameters", "rounding_zeros", "disk_bytes", "disk_ratio", "weights_bytes", "weights_ratio",
           "cuda_bytes", "peak_bytes", "generate_tok_s", "prefill_tok_s", "decode_tok_s", "decode_tok_s_lo",
           "decode_tok_s_hi", "decode_floor_tok_s", "ttft_ms", "repetition", "distinct_2", "dense_nll")  # fmt: skip
OWN = ("study", "part", "kind", "title", "budget", "run_id", "status", "started")  # never a run's own word
ABSENT = ("study", "part", "title", "base", "state", "reason")
LEFT_OUT = ("study", "model", "target", "reason")
UNUSUAL = {"method": "magnitude", "scope": "layer", "pattern": "unstructured", "quantize": "none", "runtime": "dense"}


@dataclass(frozen=True)
class Study:
    """The run that stands for a study, and what it planned; `plan` is None where that is not to be had."""

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


@dataclass(frozen=True)
class Results:
    """`rows`: the dense bases and the tickets that were measured; `absent`: what was planned and is not there (missing,
    failed, killed, running), with the reason; `left_out`: what the plan itself left out. Artifacts are read when they are
    asked for."""

    client: Client
    studies: tuple[Study, ...]
    rows: pd.DataFrame
    absent: pd.DataFrame
    left_out: pd.DataFrame
    protocols: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (id, base) -> what it says, for people

    @property
    def tickets(self) -> pd.DataFrame:
        return self.rows[self.rows["kind"] == "ticket"]

    @property
    def dense(self) -> pd.DataFrame:
        return self.rows[self.rows["kind"] == "dense"]

    def nll(self, run_id: str) -> np.ndarray | None:
        """Mean NLL of each evaluation window; None where the run has none."""
        return read_array(self.client, run_id, "nll_per_window.npy")

    def control_nll(self, run_id: str) -> np.ndarray | None:
        """The same of each random control, [C, N]."""
        return read_array(self.client, run_id, "control_nll_per_window.npy")

    def samples(self, run_id: str) -> list[dict[str, str]]:
        """prompt, text, and the dense base's text where it was measured beside."""
        found = read_json(self.client, run_id, "samples.json")
        if not isinstance(found, list):
            return []
        return [{str(k): str(v) for k, v in s.items()} for s in found if isinstance(s, dict) and "prompt" in s]

    def beside(self, run_id: str) -> dict[str, float]:
        """The dense base's metrics as the same process measured them (a study's once): what speeds compare to."""
        found = read_json(self.client, run_id, "measurements.json")
        dense = found.get("dense") if isinstance(found, dict) else None
        return {k: float(v) for k, v in dense.items() if isinstance(v, (int, float))} if isinstance(dense, dict) else {}


def load(client: Client, study: str = "", filter: str = "") -> Results:
    """What the named studies found (a name, whose newest run is meant; a study's id; the id of its run; several with commas
    between them), or the finished tickets that fulfil `filter`, in MLflow's words; without both the newest study.

    Raises InputError for an unknown study (it lists those that there are), a filter that MLflow does not understand, or
    where nothing was measured.
    """
    experiments = [e.experiment_id for e in every_page(client.search_experiments)]
    if filter and study:
        raise InputError(f"filter={filter}: study={study} is given too; give one of them")
    if filter:
        return with_dense(client, experiments, by_filter(client, experiments, filter))
    names = [name.strip() for name in study.split(",") if name.strip()]
    found = [find_study(client, experiments, name) for name in names or [""]]
    unique = {run.info.run_id: read_study(client, run) for run in found}
    return with_dense(client, experiments, of_studies(client, experiments, tuple(unique.values())))


def tickets(filter: str = "") -> pd.DataFrame:
    """The finished ticket runs of the store that MLFLOW_TRACKING_URI names, one row each: params, metrics and tags by their
    names. `filter` in MLflow's words: "metrics.perplexity_ratio < 1.1 and params.target = 'late'".

    Raises InputError for a filter that MLflow does not understand, or that nothing fulfils.
    """
    from lottery.registry.store import connect

    client = connect(reading=True)
    return by_filter(client, [e.experiment_id for e in every_page(client.search_experiments)], filter).rows


def search(client: Client, experiments: Sequence[str], query: str) -> list[Any]:
    """All runs that fulfil it, the newest first."""
    order = ["attributes.start_time DESC"]
    return every_page(partial(client.search_runs, list(experiments), query, max_results=1000, order_by=order))


def find_study(client: Client, experiments: Sequence[str], name: str) -> Any:
    """The newest run of a study. Raises InputError where there is none; it says which there are."""
    runs = search(client, experiments, "tags.kind = 'study'")
    for run in runs:
        tags = run.data.tags
        if not name or name in (tags.get("study"), tags.get("study_id"), run.info.run_id):
            return run
    known = dict.fromkeys(run.data.tags.get("study", run.info.run_id) for run in runs)
    if not known:
        raise InputError(
            f"study={name}: there is no study in this tracking store; make one: lottery study locate"
            if name
            else "study: there is none in this tracking store; make one (lottery study locate), or give a filter of tickets"
        )
    raise InputError(f"study={name}: no such study; there are: {', '.join(known)}; or give the id of a study's run")


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
    """The plan's parts, in its order; what is no part is passed over: the file is an artifact, anybody can have edited it."""
    found: list[dict[str, Any]] = []
    for kind in kinds:
        given = (study.plan or {}).get(kind)
        found += [p for p in given if isinstance(p, dict)] if isinstance(given, list) else []
    return found


def of_studies(client: Client, experiments: Sequence[str], studies: tuple[Study, ...]) -> Results:
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
            for run in points(done) if part.startswith("refine-") else done[:1]:
                found = as_planned(row(run), plan)
                of_part.setdefault(part, []).append(found)
                rows.append(found | {"study": study.name, "part": part, "budget": number(budget)})
                protocols |= said(run, found.get("base"))
            if part.startswith("refine-"):
                ended = [r for p in (part, *words(plan.get("points"))) for r in of_part.get(p, [])]
                absent += [{"study": study.name, "part": part, **a} for a in unfinished(plan, runs, ended)]
            elif not done:
                absent.append({"study": study.name, "part": part, **absence(plan, runs)})
        for entry in planned(study, "left_out"):
            known = {name: str(entry.get(name, "")) for name in LEFT_OUT}
            left_out.append(known | {"study": study.name})
    results = Results(
        client,
        studies,
        frame(labelled(client, rows)),
        pd.DataFrame(absent, columns=list(ABSENT)),
        pd.DataFrame(left_out, columns=list(LEFT_OUT)),
        protocols,
    )
    if results.tickets.empty:
        names, of_them = ", ".join(s.name for s in studies), results.absent.groupby("state").size()
        there = "; ".join(f"{count} {state}" for state, count in of_them.items()) or "none planned"
        raise InputError(f"study={names}: none of its tickets is measured ({there}); let the study run first")
    return results


def as_planned(found: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row in the words of the part that it stands for: one ticket has several names (`late` and `all@late`), and
    the run may have been made under another; two models may be named alike."""
    params = plan.get("params")
    asked = params if isinstance(params, dict) and found["kind"] == "ticket" else {}
    row = dict(found) | ({"base": str(plan["base"])} if plan.get("base") else {})
    if asked.get("target"):
        row["target"] = str(asked["target"])
    if not str(plan.get("part")).startswith("refine-") and (sparsity := number(asked.get("sparsity"))) is not None:
        row["sparsity"] = sparsity
    return row | ({"title": name_of(row)} if asked else {})


def unfinished(plan: Mapping[str, Any], runs: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What is said of a search that did not come to its end: its tickets that failed, else that it is missing. `rows`: the
    tickets that it knows."""
    params = plan.get("params")
    tolerance = number(params.get("tolerance")) if isinstance(params, dict) else None
    width, measured = number(plan.get("width")), {}
    for r in rows:
        overflowed = r.get("outcome") == "overflow"
        if (ratio := r.get("perplexity_ratio", math.nan if overflowed else None)) is not None:
            measured[number(r.get("sparsity")) or 0.0] = ratio
    limit = 1 + (0.1 if tolerance is None else tolerance)
    if width is None or is_done(measured, limit, width):
        return []
    if failed := [run for run in runs if run.info.status != "FINISHED" and "sparsity" in run.data.params]:
        return [absence({"base": plan.get("base")}, [run]) for run in failed]
    below, above = crossing(measured, limit)
    reason = f"it ended between {below:.2%} and {above:.2%}" if measured else "nothing of its grid is measured"
    return [absence(plan, []) | {"title": f"{plan.get('title')}: search", "reason": reason}]


def words(given: Any) -> list[str]:
    return [str(word) for word in given] if isinstance(given, list) else []


def points(runs: Sequence[Any]) -> list[Any]:
    """Of a part that searches: the newest run at each sparsity, in their order."""
    newest: dict[float, Any] = {}
    for run in runs:
        newest.setdefault(number(run.data.params.get("sparsity")) or 0.0, run)
    return [newest[sparsity] for sparsity in sorted(newest)]


def by_filter(client: Client, experiments: Sequence[str], filter: str) -> Results:
    query = "tags.kind = 'ticket' and attributes.status = 'FINISHED'"
    try:
        runs = search(client, experiments, f"{query} and {filter}" if filter else query)
    except MlflowException as e:
        raise InputError(f"filter={filter}: {' '.join(str(e).split())[:300]}") from e
    if not runs:
        raise InputError(
            f"filter={filter}: no finished ticket fulfils it; give another" if filter else "no finished ticket is there"
        )
    empty = (pd.DataFrame(columns=list(ABSENT)), pd.DataFrame(columns=list(LEFT_OUT)))
    protocols: dict[tuple[str, str], str] = {}
    for run in runs:
        protocols |= said(run)
    rows = labelled(client, [with_source(row(run)) for run in reversed(runs)])
    return Results(client, (), frame(rows), *empty, protocols)


def with_source(found: dict[str, Any]) -> dict[str, Any]:
    """A ticket that was pruned out of a registered one stands apart from those of the base: what it removed is not all
    that is gone."""
    source = str(found.get("model") or "")
    if not source.startswith("models:/"):
        return found
    return found | {"source": f"of {source}", "title": f"{found['title']} of {source}"}


def with_dense(client: Client, experiments: Sequence[str], results: Results) -> Results:
    """With the dense base of every model and protocol, also where a study found it measured and did not mark it; the same
    ticket, of two studies, once, but under each name that it was asked for by."""
    rows = results.rows.drop_duplicates(["run_id", "base", "target", "sparsity"])
    have = {(base, protocol) for base, protocol, kind in zip(rows["base"], rows["protocol"], rows["kind"], strict=True)
            if kind == "dense"}  # fmt: skip
    wanted = dict.fromkeys(
        (base, protocol)
        for base, protocol in zip(rows["base"], rows["protocol"], strict=True)
        if (base, protocol) not in have and isinstance(protocol, str) and re.fullmatch("[0-9a-f]{12}", protocol)
    )
    more: list[Mapping[str, Any]] = []
    protocols = dict(results.protocols)
    for protocol in dict.fromkeys(protocol for _, protocol in wanted):
        query = f"tags.kind = 'dense' and attributes.status = 'FINISHED' and tags.protocol = '{protocol}'"
        runs = search(client, experiments, query)
        for base in [b for b, p in wanted if p == protocol]:
            if found := [run for run in runs if run.data.tags.get("base") == base]:
                more.append(row(found[0]) | {"study": "", "part": "dense"})
                protocols |= said(found[0])
    rows = frame([*more, *records(rows)])
    return Results(results.client, results.studies, rows, results.absent, results.left_out, protocols)


def absence(plan: Mapping[str, Any], runs: Sequence[Any]) -> dict[str, str]:
    """What is said of a part that has no finished run."""
    state, reason = "missing", "it was not begun, or left no run"
    if runs:
        tags, state = runs[0].data.tags, str(runs[0].info.status).lower()
        reason = tags.get("reason") or tags.get("outcome") or "no reason is recorded"
        if state in ("running", "scheduled"):
            reason = "its run has not ended"
    params = plan.get("params")
    words = params if isinstance(params, dict) else runs[0].data.params if runs else {}
    title = str(plan.get("title") or (name_of(words) if "target" in words else "dense"))
    base = str(plan.get("base") or (runs[0].data.tags.get("base", "") if runs else ""))
    return {"title": title, "base": base, "state": state, "reason": reason}


def row(run: Any) -> dict[str, Any]:
    """One run: params, then metrics, then tags of the names that a run of lottery has, and what it is itself."""
    params, tags, metrics = run.data.params, run.data.tags, run.data.metrics
    found: dict[str, Any] = {k: v for k, v in params.items() if k in PARAMS}
    found |= {name: number(params.get(name)) for name in NUMBERS}
    found |= {k: v for k, v in metrics.items() if k not in OWN and k not in PARAMS}
    found |= {name: tags[name] for name in TAGS if name in tags}
    kind = tags.get("kind", "")
    return found | {
        "kind": kind,
        "title": "dense" if kind == "dense" else name_of(found),
        "run_id": run.info.run_id,
        "status": run.info.status,
        "started": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
    }


def labelled(client: Client, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With what a person has said of each ticket's text, by whichever run it was read."""
    said = judgements(client)
    return [{**r, **said.get((r.get("ticket", ""), r.get("protocol", "")), {})} for r in rows]


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """With every column that a run can have: what no run has is empty. The dense rows of a model first."""
    found = pd.DataFrame(list(rows))
    first = [*OWN[:4], "model", "base", "family", *PARAMS[1:3], "budget"]
    columns = list(dict.fromkeys([*first, *PARAMS, *METRICS, *TAGS, *OWN, *found.columns]))
    found = found.reindex(columns=columns)
    for name in (*METRICS, *NUMBERS, "budget"):
        found[name] = pd.to_numeric(found[name], errors="coerce").astype(float)
    for name in ("study", "part", "kind", "title", "base", "target", "protocol"):
        found[name] = found[name].astype(object).where(found[name].notna(), "")
    found.loc[found["base"] == "", "base"] = found["model"]
    return found.reset_index(drop=True)


def name_of(params: Mapping[str, Any]) -> str:
    """As runs are named: target, sparsity, and what is not as usual."""
    sparsity = number(params.get("sparsity"))
    words = [str(params.get("target", "")), "" if sparsity is None else f"{100 * sparsity:g}%"]
    words += [str(params[name]) for name, usual in UNUSUAL.items() if params.get(name, usual) not in (usual, None)]
    return " ".join(word for word in words if word)


def number(value: Any) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def said(run: Any, base: str | None = None) -> dict[tuple[str, str], str]:
    """The run's protocol in a line for people, as MLflow keeps it with the data set, by its id and the base: how many tokens
    a text has is for a tokenizer to say."""
    id, base = run.data.tags.get("protocol"), base or run.data.tags.get("base", "")
    for given in run.inputs.dataset_inputs if run.inputs else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            p = json.loads(given.dataset.profile)
            limited = "the first " if p["limit"] != "none" else ""
            windows = f"{p['windows']} windows" if p["windows"] > 1 else "window"
            name = json.loads(given.dataset.source)["tags"]["dataset"]
            line = (
                f"{name}: {p['tokens']:,} tokens, {limited}{windows} of {p['window']}, BOS {p['bos']}, "
                f"{p['dtype']} on {p['device']}"
            )
            return {(id, base): line + (f", runtime {p['runtime']}" if p["runtime"] != "dense" else "")} if id else {}
    return {}


def read_json(client: Client, run_id: str, name: str) -> Any | None:
    """A small artifact; None where the run has none, or it is no JSON."""
    content = read_artifact(client, run_id, name)
    try:
        return None if content is None else json.loads(content)
    except ValueError:
        return None


@cache
def read_array(client: Client, run_id: str, name: str) -> np.ndarray | None:
    import io

    content = read_artifact(client, run_id, name)
    try:
        return None if content is None else np.load(io.BytesIO(content), allow_pickle=False).astype(np.float64)
    except (ValueError, OSError, EOFError):
        return None


def read_artifact(client: Client, run_id: str, name: str) -> bytes | None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(*STORE_ERRORS):
        return Path(client.download_artifacts(run_id, name, folder)).read_bytes()
    return None


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Each row by itself, without what it does not have."""
    return [{str(k): v for k, v in row.items() if not pd.isna(v)} for row in rows.to_dict("records")]
