"""Writes what studies found into a JSON file, and reads such files back, so that a report needs no tracking store.

A file holds the rows of each study, the NLL of each window, and what is missing; it holds no samples. It names models and
texts by the last part of their paths. Each row is one line, so that a change can be read as a difference of lines.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lottery.errors import InputError
from lottery.files.reading import read_json
from lottery.report import frames, results
from lottery.report.study_plans import Study, planned

FORMAT = 1
DIGITS = 8  # of a metric: more than any table shows
NLL_DECIMALS = 5
EXPANDED = 4  # levels of a file that have one line for each item: the file, its studies, a study, its rows
COMMIT = "mlflow.source.git.commit"
BESIDE = ("decode_tok_s", "weights_bytes")  # of the dense model in the same process, with which speeds are compared
QUOTED = re.compile(r"(['\"])(?:~|\.{1,2})?/[^'\"]*?([^'\"/]+)/?\1")  # a path with blanks
PATH = re.compile(r"(?<![\w.:/~-])(?:~|\.{1,2})?/(?:[^\s,'\"()/]+/)*([^\s,'\"()/]+)/?")


@dataclass(frozen=True)
class SavedResults(results.Results):
    """What was read from files: no client, and no samples."""

    nll_of_run: Mapping[str, Sequence[float]] = field(default_factory=dict)
    dense_of_run: Mapping[str, dict[str, float]] = field(default_factory=dict)

    def nll(self, run_id: str) -> np.ndarray | None:
        found = self.nll_of_run.get(run_id)
        return None if found is None else np.array(found, dtype=np.float64)

    def dense_metrics(self, run_id: str) -> dict[str, float]:
        return self.dense_of_run.get(run_id, {})


def is_saved(study: str) -> bool:
    """Returns whether `study`, as `lottery report` takes it, names files and not studies of the tracking store."""
    return any(name.strip().endswith(".json") for name in study.split(","))


def to_record(found: results.Results) -> dict[str, Any]:
    """Returns what one study found as plain JSON values, without any folder's name."""
    (study,) = found.studies
    rows, absent = frames.records(found.rows), frames.records(found.absent)
    missing, plan = {a["part"] for a in absent}, study.plan or {}
    nll = {r["run_id"]: found.nll(r["run_id"]) for r in rows}
    dense = {r["run_id"]: found.dense_metrics(r["run_id"]) for r in rows if "decode_tok_s" in r}
    record = {
        "name": study.name, "study_id": study.study_id, "run_id": study.run_id, "status": study.status.lower(),
        "started": study.started.isoformat(timespec="seconds"), "question": study.question,
        "command": study.tags.get("command", ""), "commit": study.tags.get(COMMIT, ""), "study": plan.get("study") or {},
        "protocols": [[*key, line] for key, line in sorted(found.protocols.items())], "rows": list(map(plain_row, rows)),
        "nll": {id: [round(float(v), NLL_DECIMALS) for v in nll_N] for id, nll_N in nll.items() if nll_N is not None},
        "dense": {id: {k: v for k, v in of.items() if k in BESIDE} for id, of in dense.items()},
        "absent": absent, "left_out": frames.records(found.left_out),
        "planned": [{"part": p["part"], "params": p.get("params")} for p in planned(study, "tickets", "refined")
                    if p.get("part") in missing],
    }  # fmt: skip
    return shorten(record, local_paths(record["study"]))


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, pd.Timestamp):
            return value.isoformat(timespec="seconds")
        if isinstance(value, float):
            return int(value) if value.is_integer() else float(f"{value:.{DIGITS}g}")
        return value

    return {name: plain(value) for name, value in row.items()}


def local_paths(study: Any) -> list[str]:
    """Returns all absolute paths in a study's own record; a plan makes every path absolute."""
    if isinstance(study, str):
        return [study.rstrip("/")] if study.startswith("/") else []
    inside = study.values() if isinstance(study, dict) else study if isinstance(study, list) else []
    return [path for value in inside for path in local_paths(value)]


def shorten(value: Any, paths: Sequence[str]) -> Any:
    """Returns the value with the last part of each path in place of the path, in every text inside.

    `paths`: the absolute paths of files and folders that were used. A command may name them by a relative path, so
    each of their ends is looked for; other absolute paths are known by their form.
    """
    if isinstance(value, dict):
        return {key: shorten(inner, paths) for key, inner in value.items()}
    if isinstance(value, list):
        return [shorten(inner, paths) for inner in value]
    if not isinstance(value, str):
        return value
    for path in sorted(paths, key=len, reverse=True):
        parts = path.split("/")
        for first in range(len(parts) - 1):
            value = value.replace("/".join(parts[first:]), parts[-1])
    return PATH.sub(r"\1", QUOTED.sub(r"\1\2\1", value))


def to_text(value: Any, levels: int = EXPANDED, indent: str = "") -> str:
    """Returns JSON with sorted keys in which the outer `levels` have one line for each item."""
    if not levels or not value or not isinstance(value, (dict, list)):
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    inner = indent + " "
    if isinstance(value, dict):
        items, ends = [f"{json.dumps(k)}: {to_text(v, levels - 1, inner)}" for k, v in sorted(value.items())], "{}"
    else:
        items, ends = [to_text(v, levels - 1, inner) for v in value], "[]"
    return ends[0] + "\n" + ",\n".join(inner + item for item in items) + f"\n{indent}{ends[1]}"


def file_text(records: Sequence[dict[str, Any]], about: Mapping[str, str]) -> str:
    """Returns the content of a file that holds these studies. `about`: the versions that made it."""
    return to_text({"format": FORMAT, "made_with": dict(about), "studies": list(records)}) + "\n"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the studies in a file. Raises InputError unless `file_text` wrote it."""
    try:
        found = read_json(path)
    except InputError as e:
        raise InputError(f"study={e}; give a file that python analysis/collect.py wrote") from e
    if found.get("format") != FORMAT or not isinstance(found.get("studies"), list):
        raise InputError(f"study={path}: it holds no results of studies; python analysis/collect.py writes such a file")
    return found["studies"]


def read_saved(study: str) -> SavedResults:
    """Returns what the files found that `study` names, separated by commas. Raises InputError for any other file."""
    names = [name.strip() for name in study.split(",") if name.strip()]
    if others := [name for name in names if not name.endswith(".json")]:
        raise InputError(f"study={study}: {others[0]} is no .json file; give files only, or studies of the store only")
    read = [(path, record) for path in map(Path, names) for record in read_records(path)]
    for path, record in read:
        try:
            combine([record])
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise InputError(f"study={path}: it does not hold what collect.py wrote ({e!r}); collect it again") from e
    return combine([record for _, record in read])


def combine(records: Sequence[Mapping[str, Any]]) -> SavedResults:
    """Returns what several studies found together. A run that two of them name is kept once."""
    rows = frames.frame(
        {**row, "started": pd.Timestamp(row["started"])} for record in records for row in record["rows"]
    )
    rows = rows.drop_duplicates(["run_id", "base", "target", "sparsity"]).reset_index(drop=True)
    return SavedResults(
        client=None,
        studies=tuple(map(read_study, records)),
        rows=rows,
        absent=pd.DataFrame([a for r in records for a in r["absent"]], columns=list(results.ABSENT)),
        left_out=pd.DataFrame([left for r in records for left in r["left_out"]], columns=list(results.LEFT_OUT)),
        protocols={(id, base): line for r in records for id, base, line in r["protocols"]},
        nll_of_run={id: nll for r in records for id, nll in r["nll"].items()},
        dense_of_run={id: dense for r in records for id, dense in r["dense"].items()},
    )


def read_study(record: Mapping[str, Any]) -> Study:
    tags = {"command": record["command"], COMMIT: record["commit"]}
    return Study(
        run_id=record["run_id"],
        name=record["name"],
        study_id=record["study_id"],
        status=record["status"],
        started=pd.Timestamp(record["started"]),
        tags={name: value for name, value in tags.items() if value},
        plan={"question": record["question"], "study": record["study"], "tickets": record["planned"]},
    )
