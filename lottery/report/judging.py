"""Says which tickets of a report are judged, and why the others are not."""

from collections import Counter
from collections.abc import Iterable, Sequence

from lottery.measuring.verdict import NOT_JUDGED, describe_verdict
from lottery.report.grouping import Row
from lottery.report.wording import natural_list, pluralize


def verdict(row: Row) -> str:
    """Returns a ticket's verdict in the words of every table, "" if it has none."""
    return describe_verdict({name: str(row[name]) for name in ("winner", "limited") if isinstance(row.get(name), str)})


def reasons_not_judged(rows: Iterable[Row]) -> list[str]:
    """Returns why tickets have no verdict ("not judged: 8 of 54 windows"), the most frequent reason first."""
    said = Counter(v for r in rows if r.get("kind") == "ticket" and (v := verdict(r)).startswith(NOT_JUDGED))
    return [reason for reason, _ in said.most_common()]


def count_verdicts(rows: Sequence[Row]) -> str:
    """Returns how many tickets were measured, and how they were judged: "11 measured, none judged: 8 of 54 windows"."""
    verdicts = [verdict(r) for r in rows if r.get("kind") == "ticket"]
    measured, winners = f"{len(verdicts)} measured", pluralize(verdicts.count("yes"), "winner")
    if not (why := reasons(rows)):
        return f"{measured}, {winners}"
    if not {"yes", "no"} & set(verdicts):
        return f"{measured}, none judged: {why}"
    return f"{measured}, {winners}, {count_not_judged(rows)} not judged: {why}"


def not_judged_note(rows: Sequence[Row]) -> str:
    """Returns what a reader is to know first if tickets have no verdict, else ""."""
    count, every = count_not_judged(rows), sum(r.get("kind") == "ticket" for r in rows)
    if not count:
        return ""
    which = "These tickets" if count == every else f"{count} of {pluralize(every, 'ticket')}"
    return f"{which} are {NOT_JUDGED}{reasons(rows)}. What is said of them is an estimate."


def count_not_judged(rows: Iterable[Row]) -> int:
    return sum(verdict(r).startswith(NOT_JUDGED) for r in rows if r.get("kind") == "ticket")


def reasons(rows: Iterable[Row]) -> str:
    return natural_list(reason.removeprefix(NOT_JUDGED) for reason in reasons_not_judged(rows))
