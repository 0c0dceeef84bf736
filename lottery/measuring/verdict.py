"""Decides from what a ticket is judged, and says where it is not.

A verdict is the text of a tag: "yes", "no", or "not judged: REASON". Everything that shows it shows this text.
"""

from collections.abc import Mapping

from lottery.measuring.protocol import EvalProtocol, count_windows

LEAST_WINDOWS = 12  # from so many windows on, a 95% interval holds the true mean in 94 to 96 of 100 texts (LOG.md)
NOT_JUDGED = "not judged: "


def reason_not_judged(protocol: EvalProtocol, whole: bool = True) -> str | None:
    """Returns why windows of this protocol give no verdict, None if they do.

    They are too few for an interval, or they are not the whole text although the verdict needs it (`whole`): the first
    windows of a text are often easier or harder than the rest, which no interval of theirs can tell.
    """
    if whole and protocol.windows < protocol.all_windows:
        return f"{protocol.windows:,} of {protocol.all_windows:,} windows"
    if protocol.windows < LEAST_WINDOWS:
        return f"{count_windows(protocol.windows)}, {LEAST_WINDOWS} are needed"
    return None


def judge(protocol: EvalProtocol, yes: bool, whole: bool = True) -> str:
    """Returns the text of a verdict: `yes` says how it ends if these windows give one."""
    reason = reason_not_judged(protocol, whole)
    return f"{NOT_JUDGED}{reason}" if reason else "yes" if yes else "no"


def describe_verdict(tags: Mapping[str, str]) -> str:
    """Returns the verdict on a ticket as every table shows it, "" if its tags hold none.

    Earlier versions said "no" of every ticket that was measured under a limit.
    """
    verdict, limited = tags.get("winner") or "", tags.get("limited")
    return (
        f"{NOT_JUDGED}the first {'window' if limited == '1' else f'{limited} windows'}"
        if limited and verdict in ("yes", "no")
        else verdict
    )


def is_judged(tags: Mapping[str, str]) -> bool:
    """Returns whether a ticket's tags say that it wins, or that it does not."""
    return describe_verdict(tags) in ("yes", "no")
