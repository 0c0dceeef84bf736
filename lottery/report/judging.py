"""Says which tickets of a report are judged, and why the others are not."""

from collections import Counter
from collections.abc import Iterable, Sequence

from lottery.measuring.verdict import LEAST_WINDOWS, NOT_JUDGED, describe_verdict
from lottery.report.grouping import Row
from lottery.report.wording import pluralize

ESTIMATE = "an estimate, not judged"


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
    if count_not_judged(rows) == len(verdicts):
        return f"{measured}, none judged: {why}"
    return f"{measured}, {winners}, {count_not_judged(rows)} not judged: {why}"


def not_judged_note(rows: Sequence[Row]) -> str:
    """Returns what a reader is to know first if tickets have no verdict, else ""."""
    count, every = count_not_judged(rows), sum(r.get("kind") == "ticket" for r in rows)
    if not count:
        return ""
    which = f"{count} of {pluralize(every, 'ticket')}"
    if count == every:
        which = "This ticket" if every == 1 else "These tickets"
    are, them = ("is", "it") if count == 1 else ("are", "them")
    return f"{which} {are} {NOT_JUDGED}{reasons(rows)}. What is said of {them} is an estimate."


def count_not_judged(rows: Iterable[Row]) -> int:
    return sum(verdict(r).startswith(NOT_JUDGED) for r in rows if r.get("kind") == "ticket")


def reasons(rows: Iterable[Row]) -> str:
    return "; ".join(reason.removeprefix(NOT_JUDGED) for reason in reasons_not_judged(rows))


def mark_estimate(short: str, not_judged: Iterable[str]) -> str:
    """Returns a headline, marked as an estimate if any of the reasons `not_judged` is not empty."""
    return f"{short} ({ESTIMATE})" if any(not_judged) else short


def with_reasons(about: str, not_judged: Iterable[str]) -> str:
    """Returns what a headline is about, followed by the reasons why its tickets are not judged."""
    return "; ".join([about, *dict.fromkeys(reason for reason in not_judged if reason)])


def has_few_windows(not_judged: str) -> bool:
    """Returns whether a verdict, "" where tickets are judged, is of fewer than `LEAST_WINDOWS` windows. Each reason
    begins with the number of windows that were measured."""
    counted = not_judged.removeprefix(NOT_JUDGED).split(" ")[0].replace(",", "")
    return counted.isdecimal() and int(counted) < LEAST_WINDOWS
