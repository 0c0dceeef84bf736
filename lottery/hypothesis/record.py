"""This file collects what the trainings of a plan left on disk into one record: hypothesis.json.

Reports, tables and the documentation are drawn from this record alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lottery.hypothesis.claims import Group, Made, all_claims, all_rows
from lottery.hypothesis.plan import Plan, Segment
from lottery.measuring.intervals import resample_counts
from lottery.training.arms import mask_cost
from lottery.training.barrier import barrier
from lottery.training.corpus import Corpus
from lottery.training.outputs import Outputs
from lottery.training.recipe import Training, living

FORMAT = 1
SHOWN = 5  # decimals of losses on a line
EXACT = 6  # decimals of the loss of a window


def shown_arm(training: Training) -> str:
    """Returns the arm's name in tables: a ticket rewound to its first weights is the original hypothesis'."""
    return "original" if training.arm == "rewound" and training.rewind == training.mask_rewind == 0 else training.arm


def collect(
    plan: Plan, outputs: Outputs, corpus: Corpus, prunable: int, size: int, reasons: Mapping[str, tuple[str, str]],
    run_ids: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Returns the record of a hypothesis.

    `reasons` says, by the id of a training, why it failed or is missing; `run_ids` names the MLflow runs. `prunable` and
    `size` are the numbers of prunable weights and of all parameters.
    """
    h = plan.hypothesis
    record = {
        "format": FORMAT,
        "name": h.name,
        "question": h.question,
        "text": corpus.about(),
        "setup": setup_record(plan, corpus),
        "parameters": {"all": size, "prunable": prunable},
        "trainings": [of_training(plan, t, outputs, prunable, reasons, run_ids) for t in plan.trainings],
        "barriers": [
            of_segment(plan, s, outputs, prunable) for s in plan.segments if outputs.line_path(s.a, s.b).exists()
        ],
        "tickets": [],
    }
    return with_claims(record)


def with_claims(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record with the rows and claims that its trainings give."""
    groups, diverged, planned = group(record["trainings"])
    unigram = record["text"]["ngram"].get("unigram")
    return {
        **record,
        "rows": all_rows(groups, diverged),
        "claims": all_claims(groups, diverged, planned, unigram),
    }


def setup_record(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """Returns the parameters of a hypothesis as the report shows them."""
    h = plan.hypothesis
    names = ("layers", "width", "heads", "inner", "vocabulary", "context", "batch", "steps", "lr", "warmup", "decay",
             "clip", "rate", "scope")  # fmt: skip
    windows = {"search": len(corpus.search_NT), "report": len(corpus.report_NT)}
    more = {"rewind": rewind_shares(plan), "compile": plan.setup.compile, "device": plan.setup.device}
    return {name: getattr(h, name) for name in names} | more | {"seeds": h.all_seeds, "windows": windows}


def rewind_shares(plan: Plan) -> list[float]:
    return sorted({round(t.rewind / t.steps, 6) for t in plan.asked if t.round and t.rewind})


def density_of(training: Training, prunable: int, rate: float) -> float:
    return living(prunable, training.round, rate) / prunable


def of_training(
    plan: Plan, training: Training, outputs: Outputs, prunable: int, reasons: Mapping[str, tuple[str, str]],
    run_ids: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Returns what is known of one training, also of one that was not made."""
    id = training.id(plan.setup)
    found: dict[str, Any] = asdict(training) | {"id": id, "arm": shown_arm(training), "asked": training in plan.asked}
    found |= {"density": density_of(training, prunable, plan.setup.rate), "run_id": run_ids.get(id)}
    if outputs.has(training):
        result = outputs.result(training)
        keys = (
            "outcome",
            "reason",
            "search_loss",
            "loss",
            "cost",
            "curve",
            "densities",
            "empty",
            "seconds",
            "first",
            "mask_step",
        )
        if is_compared(found) and result["outcome"] == "done":
            found["report_nll"] = outputs.read_nll(training, "report").round(EXACT).tolist()
        return found | {key: result.get(key) for key in keys}
    outcome, reason = reasons.get(id, ("missing", "it was not made"))
    return found | {"outcome": outcome, "reason": reason, "cost": round(mask_cost(training), 3)}


def is_compared(row: Mapping[str, Any]) -> bool:
    """Returns whether a training stands in tables.

    The rounds of a chain on the way to the densities that the grid names do too, and so do tickets from the other
    rewind points of the barriers: whether a ticket matches from where the barrier vanishes is a claim. Copies with
    another order of the data, and dense ones from step k, serve the barriers alone.
    """
    return bool(row["asked"] or (not row["order"] and row["arm"] in ("rewound", "original")))


def group(
    trainings: Iterable[Mapping[str, Any]],
) -> tuple[dict[Group, list[Made]], dict[tuple[Group, float], int], dict[Group, int]]:
    """Returns the trainings that tables compare, by what they have in common, how many diverged at which rate, and how
    many seeds were planned."""
    groups: dict[Group, list[Made]] = {}
    diverged: dict[tuple[Group, float], int] = {}
    seeds: dict[Group, set[int]] = {}
    for row in filter(is_compared, trainings):
        key = group_of(row)
        groups.setdefault(key, [])
        seeds.setdefault(key, set()).add(row["seed"])
        if row["outcome"] == "diverged":
            diverged[key, row["lr"]] = diverged.get((key, row["lr"]), 0) + 1
        elif row["outcome"] == "done":
            groups[key].append(Made(row["seed"], row["lr"], row["search_loss"], np.asarray(row["report_nll"])))
    return groups, diverged, {key: len(of) for key, of in seeds.items()}


def group_of(row: Mapping[str, Any]) -> Group:
    share = round(row["rewind"] / row["steps"], 6)
    return Group(
        row["arm"], row["density"], row["round"], row["rewind"], share, row["steps"], row["mask_steps"],
        row["mask_rewind"], row["scope"],
    )  # fmt: skip


def of_segment(plan: Plan, segment: Segment, outputs: Outputs, prunable: int) -> dict[str, Any]:
    """Returns the barrier of a line with its interval over windows, and the losses on it."""
    a, b = segment.a, segment.b
    line_AN = outputs.read_line(a, b)
    mean_SA = resample_counts(line_AN.shape[1]) @ line_AN.T / line_AN.shape[1]
    of_S = np.maximum(mean_SA.max(1) - (mean_SA[:, 0] + mean_SA[:, -1]) / 2, 0)
    lo, hi = np.quantile(of_S, [0.025, 0.975])
    shares = np.linspace(0, 1, len(line_AN))
    return {
        "arm": shown_arm(b), "seed": b.seed, "density": density_of(b, prunable, plan.setup.rate), "round": b.round,
        "rewind": b.rewind, "rewind_share": round(b.rewind / b.steps, 6), "lr": b.lr, "steps": b.steps,
        "kind": segment.kind, "a": a.id(plan.setup), "b": b.id(plan.setup),
        "barrier": round(barrier(line_AN), SHOWN), "lo": round(float(lo), SHOWN), "hi": round(float(hi), SHOWN),
        "line": [[round(float(x), 3), round(float(y), SHOWN)] for x, y in zip(shares, line_AN.mean(1), strict=True)],
    }  # fmt: skip
