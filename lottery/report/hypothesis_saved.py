"""Writes what a hypothesis found into a small JSON file, and reads such files back: the record (hypothesis.json) without
what no page shows. It names texts by the last part of their paths.

Trainings of one place lie in one row, a list for each of their seeds. Every curve but those that a page draws is left out,
and so are the densities of all but a few tickets.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lottery.errors import InputError
from lottery.files.reading import read_json
from lottery.registry.store import Client, every_page
from lottery.report.artifacts import read_json as read_artifact
from lottery.report.hypothesis_barriers import barrier_lines
from lottery.report.hypothesis_figures import middle_density, training_lines, usual_rows
from lottery.report.hypothesis_page import chief_row
from lottery.report.hypothesis_record import TICKETS, Record, Row, check_format, trainings_of
from lottery.report.results import search
from lottery.report.saved import shorten, to_text

RECORD = "hypothesis.json"
DECIMALS = 8  # of what tables show: with 6, rounding twice changed a third decimal
OF_TRAINING, FEWER = 5, 4  # of a training's own losses; of curves, lines and densities of a matrix
SHARED = ("arm", "round", "density", "rewind", "lr", "mask_lr", "mask_rewind", "steps", "mask_steps", "order", "scope",
          "cost")  # fmt: skip
OF_SEED = ("seed", "search_loss", "loss", "seconds")
# What most trainings have, and a file therefore does not repeat:
RARE: dict[str, Any] = {"outcome": "done", "reason": None, "empty": [], "curve": [], "densities": {}}
PACKED = ("trainings", "rows", "claims", "barriers")
EXPANDED = 4  # levels of a file that have one line for each item: the file, the record, a table, its rows


def load_record(client: Client, name: str) -> Record:
    """Returns the record of the newest run of a hypothesis. `name` is its name, its id or the id of its run.

    Raises InputError, which lists the known ones, if there is none, and if the run has not ended.
    """
    experiments = [e.experiment_id for e in every_page(client.search_experiments)]
    runs = search(client, experiments, "tags.kind = 'hypothesis'")
    for run in runs:
        if name in (run.data.tags.get("study"), run.data.tags.get("study_id"), run.info.run_id):
            record = read_artifact(client, run.info.run_id, RECORD)
            if record is None:
                raise InputError(
                    f"hypothesis={name}: its run holds no {RECORD} yet; let the command end, which writes it last"
                )
            return record
    known = ", ".join(dict.fromkeys(run.data.tags.get("study", run.info.run_id) for run in runs))
    has = f"known: {known}" if known else "this tracking store has none; make one: lottery hypothesis"
    raise InputError(f"hypothesis={name}: no such hypothesis; {has}; or give the file {RECORD}")


def find_record(client: Callable[[], Client], name: str) -> Record:
    """Returns the record that a name, an id or a file names, as `load_record` and `read_record` do. The store is opened only
    for a name or an id."""
    return read_record(Path(name).expanduser()) if name.endswith(".json") else load_record(client(), name)


def read_record(path: Path) -> Record:
    """Returns the record in the file that a hypothesis logs. Raises InputError for any other file."""
    try:
        found = read_json(path)
        check_format(found)
    except InputError as e:
        raise InputError(f"hypothesis={e}") from e
    if missing := [key for key in (*PACKED, "setup", "text") if key not in found]:
        raise InputError(f"hypothesis={path}: it holds no {missing[0]}; give a {RECORD} that lottery hypothesis logged")
    return found


def reduce_record(record: Record) -> Record:
    """Returns the record with what pages and figures need: smaller numbers, fewer curves, no ids of runs."""
    kept = {
        "trainings": pack_trainings(thin_trainings(record)),
        "rows": pack(record["rows"]),
        "claims": pack(record["claims"]),
        "barriers": pack(thin_barriers(record)),
        "tickets": [{k: v for k, v in t.items() if k not in ("id", "run_id")} for t in record.get("tickets") or []],
    }
    return shorten(rounded({**record, **kept}), [])


def file_text(record: Record, about: Mapping[str, str]) -> str:
    """Returns the content of a file that holds the record. `about`: the versions that made it."""
    return to_text({"format": 1, "made_with": dict(about), "hypothesis": reduce_record(record)}, EXPANDED) + "\n"


def read_saved(path: Path) -> Record:
    """Returns the record that a file holds. Raises InputError unless `file_text` wrote it."""
    try:
        found = read_json(path)["hypothesis"]
        check_format(found)
        whole = {**found, **{name: unpack(found[name]) for name in PACKED}}
        return {**whole, "trainings": unpack_trainings(whole["trainings"])}
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"{path}: it does not hold a hypothesis that collect.py wrote ({e}); collect it again") from e


def rounded(value: Any, decimals: int = DECIMALS) -> Any:
    """Returns the value with every number inside rounded."""
    if isinstance(value, dict):
        return {key: rounded(inner, decimals) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(inner, decimals) for inner in value]
    return round(value, decimals) if isinstance(value, float) else value


def pack(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the rows as a table: the names of the columns once, and a list for each row."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def unpack(table: Mapping[str, Any]) -> list[Row]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def pack_trainings(trainings: Iterable[Row]) -> dict[str, Any]:
    """Returns a table with one row for the trainings that differ in their seed alone. `more` holds for each of them what
    most trainings do not have."""
    places: dict[tuple[Any, ...], list[Row]] = {}
    for t in trainings:
        places.setdefault(tuple(t.get(name) for name in SHARED), []).append(t)
    rows = []
    for place, of in places.items():
        more = [{k: t[k] for k, usual in RARE.items() if (t.get(k) or usual) != usual} for t in of]
        lists = {name: [t.get(name) for t in of] for name in OF_SEED}
        rows.append({**dict(zip(SHARED, place, strict=True)), **lists, "more": more if any(more) else None})
    return pack(rows)


def unpack_trainings(rows: Sequence[Row]) -> list[Row]:
    found = []
    for row in rows:
        shared = {name: row[name] for name in SHARED}
        for i in range(len(row["seed"])):
            own = {name: row[name][i] for name in OF_SEED}
            found.append({**shared, **own, **RARE, "run_id": None, **(row["more"][i] if row["more"] else {})})
    return found


def thin_trainings(record: Record) -> list[Row]:
    """Returns the trainings with the curves and densities that a page shows."""
    usual = usual_rows(record)
    drawn = identities(record, [row for row, _ in training_lines(record, usual)])
    placed = identities(record, shown_tickets(record, usual))
    return [
        {
            **t,
            **{name: rounded(t.get(name), OF_TRAINING) for name in OF_SEED},
            "curve": rounded(t["curve"][::-2][::-1], FEWER) if id(t) in drawn and t.get("curve") else [],
            "densities": rounded(t.get("densities") or {}, FEWER) if id(t) in placed else {},
        }
        for t in record["trainings"]
    ]


def shown_tickets(record: Record, usual: Sequence[Row]) -> list[Row]:
    """Returns the tickets whose places are shown: the chief one, that of the middle density and the sparsest."""
    tickets = [r for r in usual if r["arm"] in TICKETS]
    chief, _ = chief_row(record)
    shown = {middle_density(tickets), min(r["density"] for r in tickets)} if tickets else set()
    return [r for r in tickets if r["density"] in shown] + ([chief] if chief else [])


def identities(record: Record, rows: Iterable[Row]) -> set[int]:
    """Returns the identities, in this process, of the trainings that the rows are means of."""
    return {id(t) for row in rows for t in trainings_of(record, row)}


def thin_barriers(record: Record) -> list[Row]:
    """Returns the barriers with the lines that a page draws, without the names of the two trainings."""
    drawn = {line["rewind_share"] for line in barrier_lines(record)}
    return [
        {
            **{name: value for name, value in b.items() if name not in ("a", "b", "round")},
            "line": rounded(b["line"], FEWER) if b["kind"] == "order" and b["rewind_share"] in drawn else [],
        }
        for b in record["barriers"]
    ]
