"""Answers how much can be cut: the largest sparsity that wins, and where the curve crosses what a winner may lose."""

from collections.abc import Sequence

from lottery.report.answers import Answer, unknown
from lottery.report.cliffs import Cliff, find_cliffs, main_cliffs
from lottery.report.grouping import Row, keep_main_protocol
from lottery.report.judging import mark_estimate, with_reasons
from lottery.report.wording import natural_list, percent


def answer_cliff(rows: Sequence[Row]) -> Answer:
    question = "How much can be cut?"
    found = main_cliffs(rows)
    if not found:
        return unknown(question, "tickets of one target at two sparsities or more")
    every = [c.__dict__ | {"chief": c in found} for c in find_cliffs(keep_main_protocol(rows))]
    sure = "\n".join(band(c) for c in found if c.at is not None and c.bracket)
    return Answer(question, headline(found), "\n".join(map(sentence, found)), sure, tuple(every), headline_about(found))


def headline(found: Sequence[Cliff]) -> str:
    """Returns the largest sparsity at which a ticket wins, of all models together. It is an estimate where tickets are
    not judged."""
    texts = list(dict.fromkeys(most_cut(c) for c in found))
    least = min(found, key=lambda c: (c.wins or 0.0, c.least))
    most = max(found, key=lambda c: (c.wins or 0.0, c.least))
    if len(texts) == 1 or not most.wins:
        short = most_cut(most)
    elif not least.wins:
        short = f"{most_cut(least)} to {most_cut(most)}"
    elif any(c.wins == c.most for c in found):
        short = f"{percent(least.wins)} or more"
    else:
        short = f"{percent(least.wins)} to {percent(most.wins or 0.0)}"
    return mark_estimate(short, [c.not_judged for c in found])


def most_cut(c: Cliff) -> str:
    """Returns the largest sparsity at which a ticket wins: "50%", "at least 50%" if no higher one was measured, "under
    30%" if no ticket that removes weights wins."""
    if not c.wins:
        return f"under {percent(c.least)}"
    if c.wins == c.most:
        return f"at least {percent(c.wins)}" if c.wins < 1 else "all"
    return percent(c.wins)


def headline_about(found: Sequence[Cliff]) -> str:
    """Returns what the headline is about: of what, by which rule, which lower sparsity does not win, and why it is not
    judged."""
    targets, tolerances = dict.fromkeys(c.target for c in found), dict.fromkeys(c.tolerance for c in found)
    about = f"of {natural_list(f'`{t}`' for t in targets)} can go with a perplexity at most {natural_list(map(percent, tolerances))} over the dense model's"
    for c in found:
        if c.lost:
            of = f"of {c.base}, " if len(found) > 1 else ""
            about += f"; {of}{natural_list(map(percent, c.lost))} {'does' if len(c.lost) == 1 else 'do'} not win"
    return with_reasons(about, [c.not_judged for c in found])


def sentence(c: Cliff) -> str:
    """Returns what is known of one curve: its largest winner, and where the curve and its upper end cross."""
    how = f" ({c.setting})" if c.setting else ""
    would, judged = ("would win", f" ({c.not_judged})") if c.not_judged else ("wins", "")
    if not c.wins:
        which = "no ticket" if c.wins is None else "no ticket above 0%"
        most = f"{which} {would}{judged}, not even at {percent(c.least)} of `{c.target}`{how}"
    elif c.wins == 1:
        most = f"all of `{c.target}`{how} can go: the ticket without it {would}{judged}"
    else:
        only = ", the highest that was measured" if c.wins == c.most else ""
        most = f"{percent(c.wins)} of the weights of `{c.target}`{how} can go: the ticket there {would}{judged}{only}"
    if c.lost:
        does = "would not" if c.not_judged else "does not" if len(c.lost) == 1 else "do not"
        most += f", although {'that' if len(c.lost) == 1 else 'those'} at {natural_list(map(percent, c.lost))} {does}"
    limit = f"{percent(c.tolerance)} over the dense model's perplexity"
    if c.at is None:
        return f"{c.base}: {most}; no ticket is {limit}."
    about = "about " if c.wide else ""
    upper = f", by the upper end of its interval already at {percent(c.lo, 1)}" if c.lo is not None else ""
    return f"{c.base}: {most}; between tickets the curve is {limit} at {about}{percent(c.at, 1)}{upper}."


def band(c: Cliff) -> str:
    """Returns how sure the crossing of one curve is."""
    assert c.bracket is not None
    far = ". These tickets are far apart: the curve bends upwards between them, so the cliff is more likely higher than lower"
    return (
        f"{c.base}: tickets were measured at {percent(c.bracket[0])} and {percent(c.bracket[1])}, and the crossing between them "
        f"is read off a straight line in the log of the ratio; the band {c.text.split(' ', 1)[1]} is where the two ends of the "
        f"95% interval cross{far if c.wide else ''}."
    )
