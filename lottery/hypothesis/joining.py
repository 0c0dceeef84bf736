"""Joins runs of one hypothesis that differ in their seeds alone, so that seeds can be trained at several times, and on
several machines."""

from collections.abc import Mapping, Sequence
from typing import Any

from lottery.errors import InputError
from lottery.hypothesis.record import FORMAT, is_compared, with_claims

NEEDED = ("name", "text", "parameters", "barriers", "tickets", "command")
PLACE = (
    "arm",
    "density",
    "round",
    "rewind",
    "steps",
    "lr",
    "mask_lr",
    "mask_steps",
    "mask_rewind",
    "order",
    "scope",
    "asked",
)


def join_records(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one record of all seeds, whose rows and claims are computed anew from the losses of each window.

    A pair of arms is compared seed by seed, and each seed was trained on one machine. Of the tickets that the runs have
    registered, those remain that match by what all seeds say. Raises InputError for one record,
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
    for part in ("trainings", "barriers"):
        found[part] = [row for record in ordered for row in record[part]]
    found = with_claims(found)
    won = {(c["arm"], c["density"]) for c in found["claims"] if c["claim"] == "matches" and c["holds"]}
    tickets = [ticket for record in ordered for ticket in record["tickets"]]
    return {**found, "tickets": [t for t in tickets if (t["arm"], t["density"]) in won]}


def check(record: Mapping[str, Any]) -> None:
    """Raises InputError for a record of another version, or without the loss of each window."""
    if record.get("format") != FORMAT:
        raise InputError(
            f"join: a run's hypothesis.json has format={record.get('format')!r}, and this version reads {FORMAT}; run its "
            f"command again"
        )
    try:
        seeds = record["setup"]["seeds"]
        lost = [t for t in record["trainings"] if t["outcome"] == "done" and is_compared(t) and "report_nll" not in t]
        _ = [record[name] for name in NEEDED], [training_place(t) for t in record["trainings"]]
    except (KeyError, TypeError) as e:
        raise InputError(
            f"join: a run's hypothesis.json holds no {e}; run its command again, which writes it anew"
        ) from e
    if lost:
        raise InputError(
            f"join: the run of seed {seeds[0]} was recorded by an earlier lottery, without the losses of each window; run "
            f"its command again, which finds its trainings"
        )


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns the name of what two runs do not share, beside their seeds, and what it is in each."""
    if a["name"] != b["name"]:
        return "preset", a["name"], b["name"]
    for name in sorted((a["setup"].keys() | b["setup"].keys()) - {"seeds"}):
        if a["setup"].get(name) != b["setup"].get(name):
            return name, a["setup"].get(name), b["setup"].get(name)
    if a["text"]["sha256"] != b["text"]["sha256"]:
        one, two = (f"{r['text']['name']} ({r['text']['sha256'][:8]})" for r in (a, b))
        return "text", one, two
    planned = [{training_place(t): t for t in r["trainings"]} for r in (a, b)]
    for only in planned[0].keys() ^ planned[1].keys():
        training = planned[0].get(only) or planned[1][only]
        words = f"{training['arm']} at {training['density']:.2g}, lr={training['lr']:g}"
        one, two = (words if only in of else f"no {words}" for of in planned)
        return "trainings", one, two
    return None


def training_place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what a training is but for its seed."""
    return tuple(row[name] for name in PLACE)
