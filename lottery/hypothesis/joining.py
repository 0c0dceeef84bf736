"""Joins runs of one hypothesis that differ in their seeds alone, so that seeds can be trained at several times, and on
several machines."""

from collections.abc import Mapping, Sequence
from typing import Any

from lottery.errors import InputError
from lottery.hypothesis.record import FORMAT, is_compared, with_claims


def join_records(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one record of all seeds, whose rows and claims are computed anew from the losses of each window.

    A pair of arms is compared seed by seed, and each seed was trained on one machine. Raises InputError for one record,
    for runs that differ in more than their seeds, for a seed that stands in two, and for records without those losses.
    """
    if len(records) < 2:
        raise InputError("join: it names one run; name two or more, with commas between them")
    for record in records:
        check(record)
    first = records[0]
    for other in records[1:]:
        if differs := first_difference(first, other):
            name, a, b = differs
            raise InputError(
                f"join: the runs differ in {name}: {a} and {b}; join runs that differ in their seeds alone"
            )
    seeds = [seed for record in records for seed in record["setup"]["seeds"]]
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise InputError(f"join: seed {twice[0]} stands in two of the runs; name one of them")
    ordered = sorted(records, key=lambda record: record["setup"]["seeds"])
    found = {
        **first,
        "setup": {**first["setup"], "seeds": sorted(seeds)},
        "command": "\n".join(record["command"] for record in ordered),
    }
    for part in ("trainings", "barriers", "tickets"):
        found[part] = [row for record in ordered for row in record[part]]
    return with_claims(found)


def check(record: Mapping[str, Any]) -> None:
    """Raises InputError for a record of another version, or without the loss of each window."""
    if record.get("format") != FORMAT:
        raise InputError(f"join: hypothesis.json: format={record.get('format')!r}, this version reads {FORMAT}")
    done = [t for t in record["trainings"] if t["outcome"] == "done" and is_compared(t)]
    if any("report_nll" not in t for t in done):
        raise InputError(
            f"join: the run of seed {record['setup']['seeds'][0]} was recorded by an earlier lottery, without the losses "
            f"of each window; run its command again, which finds its trainings"
        )


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns the name of what two runs do not share, beside their seeds, and what it is in each."""
    if a["text"]["sha256"] != b["text"]["sha256"]:
        return "text", a["text"]["name"], b["text"]["name"]
    for name in ("name", *sorted(a["setup"].keys() | b["setup"].keys())):
        pair = [r.get(name) if name == "name" else r["setup"].get(name) for r in (a, b)]
        if name != "seeds" and pair[0] != pair[1]:
            return name, *pair
    planned = [{training_place(t) for t in r["trainings"]} for r in (a, b)]
    if planned[0] != planned[1]:
        return "trainings", f"{len(planned[0])} places", f"{len(planned[1])} places"
    return None


def training_place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what a training is but for its seed."""
    names = ("arm", "round", "rewind", "steps", "lr", "mask_lr", "mask_steps", "mask_rewind", "order", "scope", "asked")
    return tuple(row[name] for name in names)
