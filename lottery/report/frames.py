"""Turns MLflow runs into rows of a data frame, and back into plain records."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from lottery.registry.protocols import describe_protocol
from lottery.registry.runs import as_typed
from lottery.spec import calibration_words, short_base

PARAMS = ("model", "target", "sparsity", "method", "scope", "allocation", "calibration", "nsamples", "seqlen", "propagate",
          "pattern", "quantize", "storage", "dataset", "window", "limit",
          "dtype", "runtime", "measure", "control", "tolerance", "seed", "register")  # fmt: skip
NUMBERS = ("sparsity", "tolerance", "control", "seed")  # params that are numbers
TAGS = ("ticket", "protocol", "base", "family", "hardware", "device", "winner", "beats_control", "coherent", "note",
        "outcome", "limited")  # fmt: skip
METRICS = ("perplexity", "perplexity_lo", "perplexity_hi", "perplexity_ratio", "perplexity_ratio_lo",
           "perplexity_ratio_hi", "bits_per_byte", "control_perplexity", "control_perplexity_lo", "control_perplexity_hi",
           "control_ratio", "control_ratio_lo", "control_ratio_hi", "sparsity_target", "sparsity_prunable",
           "sparsity_model", "parameters", "rounding_zeros", "disk_bytes", "disk_ratio", "weights_bytes", "weights_ratio",
           "cuda_bytes", "peak_bytes", "generate_tok_s", "prefill_tok_s", "decode_tok_s", "decode_tok_s_lo",
           "decode_tok_s_hi", "decode_floor_tok_s", "ttft_ms", "repetition", "distinct_2", "dense_nll",
           "layer_error", "calibrate_s", "prune_s")  # fmt: skip
RESERVED = (
    "study",
    "part",
    "kind",
    "title",
    "budget",
    "run_id",
    "status",
    "started",
)  # columns that no metric of a run may overwrite
DEFAULT_PARAMS = {
    "method": "magnitude",
    "scope": "layer",
    "allocation": "uniform",
    "pattern": "unstructured",
    "quantize": "none",
    "runtime": "dense",
}


def string_list(given: Any) -> list[str]:
    """Returns the items of a list as text, and [] for anything else."""
    return [str(word) for word in given] if isinstance(given, list) else []


def run_to_row(run: Any) -> dict[str, Any]:
    """Returns one run as a row: its known params, its metrics, its known tags, and its own kind, title, id, status and
    start."""
    params, tags, metrics = {k: as_typed(v) for k, v in run.data.params.items()}, run.data.tags, run.data.metrics
    found: dict[str, Any] = {k: v for k, v in params.items() if k in PARAMS}
    found |= {name: to_number(params.get(name)) for name in NUMBERS}
    found |= {k: v for k, v in metrics.items() if k not in RESERVED and k not in PARAMS}
    found |= {name: tags[name] for name in TAGS if name in tags}
    kind = tags.get("kind", "")
    return found | {
        "kind": kind,
        "title": "dense" if kind == "dense" else ticket_title(found),
        "run_id": run.info.run_id,
        "status": run.info.status,
        "started": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
    }


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns the rows as a data frame with every column that a run can have; a column that no run has is empty."""
    found = pd.DataFrame(list(rows))
    first = [*RESERVED[:4], "model", "base", "family", *PARAMS[1:3], "budget"]
    columns = list(dict.fromkeys([*first, *PARAMS, *METRICS, *TAGS, *RESERVED, *found.columns]))
    found = found.reindex(columns=columns)
    for name in (*METRICS, *NUMBERS, "budget"):
        found[name] = pd.to_numeric(found[name], errors="coerce").astype(float)
    for name in ("study", "part", "kind", "title", "base", "target", "protocol"):
        found[name] = found[name].astype(object).where(found[name].notna(), "")
    found.loc[found["base"] == "", "base"] = found["model"]
    return found.reset_index(drop=True)


def ticket_title(params: Mapping[str, Any]) -> str:
    """Returns the name that a run has: target, sparsity, and the parameters that differ from their defaults."""
    sparsity = to_number(params.get("sparsity"))
    words = [str(params.get("target", "")), "" if sparsity is None else f"{100 * sparsity:g}%"]
    words += [
        short_base(str(params[name]))
        for name, usual in DEFAULT_PARAMS.items()
        if params.get(name, usual) not in (usual, None)
    ]
    return " ".join(word for word in [*words, *calibration_words(params)] if word)


def to_number(value: Any) -> float | None:
    """Returns a finite number, or None for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def protocol_lines(run: Any, base: str | None = None) -> dict[tuple[str, str], str]:
    """Returns (protocol's id, base) -> the protocol in a line for people. The base is part of the key because the number
    of tokens of a text depends on the tokenizer."""
    id, line = run.data.tags.get("protocol"), describe_protocol(run)
    return {(id, base or run.data.tags.get("base", "")): line} if id and line else {}


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns each row as a dict, without its empty columns."""
    return [{str(k): v for k, v in row.items() if not pd.isna(v)} for row in rows.to_dict("records")]
