"""Answers what a hypothesis asked: does a ticket match dense, does it beat its controls, can it be found before training,
and do two copies of it end in one valley? Each answer is yes, no or not known, and says by which interval."""

from collections.abc import Sequence
from typing import Any

from lottery.report.answers import Answer
from lottery.report.hypothesis_record import (
    BEFORE,
    CONTROLS,
    SCORES,
    TICKETS,
    Record,
    Row,
    arm_rank,
    arms_of,
    claim_row,
    costs,
    density_text,
    difference_text,
    is_usual,
    longer_dense,
    place_key,
    rates_tried,
    rewind_text,
    seeds_of,
    training_key,
)
from lottery.report.wording import natural_list, pluralize

MATCHING = 0.01  # nats a token by which a matching ticket's upper end may lie above dense
STABLE_BELOW = 0.02  # nats a token: the barrier of one valley. Frankle et al. (2020) allow 2 points of error
RULE = f"a ticket matches if the interval ends at {MATCHING:g} or below"
MATCHES, BEATS = "Does a ticket match the dense network?", "Does it beat its controls?"
FOUND, STABLE = "Can it be found before training?", "Do two copies end in one valley?"


def answer_all(record: Record) -> list[Answer]:
    chief = chief_claim(record)
    return [
        answer_matches(record, chief),
        answer_beats(record, chief),
        answer_before(record),
        answer_stable(record, chief),
    ]


def claims_of(record: Record, kind: str, arms: Sequence[str]) -> list[Row]:
    """Returns the claims of one kind on some arms at the setup's own number of steps and scope."""
    return [c for c in record["claims"] if c["claim"] == kind and c["arm"] in arms and is_usual(record, c)]


def chief_claim(record: Record) -> Row | None:
    """Returns the claim of the sparsest ticket that matches; if none does, of the one that comes closest."""
    found = claims_of(record, "matches", TICKETS)
    held = [c for c in found if c["holds"]]
    if held:
        return min(held, key=lambda c: (c["density"], arm_rank(c["arm"]), -(c["rewind"] or 0)))
    judged = [c for c in found if c["difference"] is not None]
    return min(judged, key=lambda c: c["hi"] if c["hi"] is not None else c["difference"], default=None)


def answer_matches(record: Record, chief: Row | None) -> Answer:
    tried = claims_of(record, "matches", TICKETS)
    if chief is None:
        return Answer(MATCHES, "not known", "Not known whether a ticket matches the dense network: "
                      + (why_not(tried) or "no training of a ticket stands beside one of the dense network."), "")  # fmt: skip
    sure = " ".join(filter(None, (easy_sentence(record, chief), seeds_sentence(record), edge_sentence([chief]))))
    if chief["holds"]:
        return Answer(MATCHES, f"yes, at {density_text(chief['density'])}",
                      f"Yes: {ticket_words(chief)} matches the dense network at equal steps of the last training: "
                      f"its loss minus that of dense is {claim_text(chief)} nats a token{below_zero(chief)}; {RULE}.",
                      sure, about=place_words(chief))  # fmt: skip
    if any(c["holds"] is None for c in tried):
        return Answer(MATCHES, "not known", f"Not known whether a ticket matches the dense network: {why_not(tried)} "
                      f"The loss of the closest, {ticket_words(chief)} minus that of dense is {claim_text(chief)} nats a token.",
                      sure, about=place_words(chief))  # fmt: skip
    return Answer(MATCHES, "no", f"No: no ticket matches the dense network at a density that was tried "
                  f"({densities_text(tried)}). The loss of the closest, "
                  f"{ticket_words(chief)} minus that of dense is {claim_text(chief)} nats a token; {RULE}.", sure, about=f"closest: {place_words(chief)}")  # fmt: skip


def densities_text(claims: Sequence[Row]) -> str:
    return natural_list(dict.fromkeys(density_text(c["density"]) for c in claims))


def easy_sentence(record: Record, chief: Row) -> str:
    """Returns a sentence on controls that match dense as the ticket does, "" if there is none."""
    found = [
        c for c in claims_of(record, "matches", CONTROLS) if c["holds"] and abs(c["density"] - chief["density"]) < 1e-6
    ]
    if not chief["holds"] or not found:
        return ""
    verb = "matches" if len({c["arm"] for c in found}) == 1 else "match"
    return f"At this density {arm_names(found)} {verb} dense, too: a match alone says little here."


def why_not(claims: Sequence[Row]) -> str:
    """Returns the first reason of the claims that are not known, as a sentence."""
    reason = next((c["why"] for c in claims if c["holds"] is None and c.get("why")), "")
    return f"{reason.rstrip('.')}." if reason else ""


def claim_text(claim: Row) -> str:
    return difference_text(claim) if claim["difference"] is not None else "an unknown amount"


def below_zero(claim: Row) -> str:
    return ", so it ends better than dense" if (claim["hi"] or 0) < 0 else ""


def ticket_words(claim: Row) -> str:
    return f"the ticket `{claim['arm']}` with {density_text(claim['density'])} of the weights{rewound_words(claim)},"


def rewound_words(claim: Row) -> str:
    step = claim["rewind"] or 0
    return f", back at step {step:,} of {claim['steps']:,}" if step else ", back at its first weights"


def place_words(claim: Row) -> str:
    return f"`{claim['arm']}` at {density_text(claim['density'])}, {rewind_text(claim['rewind_share'])}"


def compared(record: Record, chief: Row | None) -> tuple[Row | None, list[Row]]:
    """Returns a ticket and the claims that it beats its controls: the chief ticket, or, where none stands beside it, the
    ticket of the nearest density that has controls."""
    if chief is None:
        return None, []
    beats, place = claims_of(record, "beats", TICKETS), place_key(chief)
    if found := [c for c in beats if c["arm"] == chief["arm"] and place_key(c) == place]:
        return chief, found
    tickets = [c for c in claims_of(record, "matches", TICKETS) if any(same_ticket(c, b) for b in beats)]
    if not tickets:
        return chief, []
    near = min(tickets, key=lambda c: (c["arm"] != chief["arm"], abs(c["density"] - chief["density"])))
    return near, [c for c in beats if same_ticket(near, c)]


def same_ticket(one: Row, other: Row) -> bool:
    return bool(one["arm"] == other["arm"] and place_key(one) == place_key(other))


def lead_sure(record: Record, chief: Row | None) -> list[str]:
    """Returns how sure the first two answers are."""
    if chief is None:
        return []
    said = (easy_sentence(record, chief), seeds_sentence(record), edge_sentence([chief, *compared(record, chief)[1]]))
    return [sentence for sentence in said if sentence]


def answer_beats(record: Record, chief: Row | None) -> Answer:
    asked, found = chief, compared(record, chief)[1]
    chief = compared(record, chief)[0]
    if not found or chief is None or asked is None:
        return Answer(BEATS, "not known", "Not known whether it beats its controls: none was trained beside it.", "")
    won, lost, open_ = ([c for c in found if c["holds"] is value] for value in (True, False, None))
    parts = []
    if won:
        least = max(won, key=lambda c: c["difference"])
        parts.append(f"it beats {control_names(won)}, each arm at its best learning rate (its loss minus that of the closest, "
                     f"`{least['control']}`: {claim_text(least)})")  # fmt: skip
    if lost:
        parts.append(f"it does not beat {control_names(lost)} ({'; '.join(claim_text(c) for c in lost)})")
    if open_:
        parts.append(f"against {control_names(open_)} it is not known ({'; '.join(c['why'] for c in open_)})")
    word = "no" if lost and not won else "not all" if lost else "not known" if open_ else "yes"
    start = {"yes": "Yes", "no": "No", "not all": "Not all of them", "not known": "Not known of all"}[word]
    at = density_text(chief["density"])
    short = (
        word
        if word == "not known"
        else f"{word}, at {at}"
        if word == "yes"
        else f"{word}, {len(won)} of {len(found)} at {at}"
    )
    where = "" if chief is asked else ", the nearest density that has controls,"
    words = {
        True: "the ticket matches dense, too",
        False: "the ticket does not match dense",
        None: "it is not known whether the ticket matches dense",
    }
    itself = "" if chief is asked else f" At this density {words[chief['holds']]} ({claim_text(chief)})."
    sentence = f"{start}: at {at}{where} {', and '.join(parts)}; {cost_words(record, chief)}.{itself}"
    return Answer(
        BEATS,
        short,
        sentence,
        edge_sentence(found),
        about=control_names(found) if word != "not known" else f"{control_names(found)} at {at}",
    )


def control_names(claims: Sequence[Row]) -> str:
    return natural_list(f"`{c['control']}`" for c in sorted(claims, key=lambda c: arm_rank(c["control"])))


def cost_words(record: Record, claim: Row) -> str:
    """Returns what the ticket has cost in trainings, and where a dense network ends that trains longer."""
    row = claim_row(record, claim)
    cost = None if row is None else costs(record).get(training_key(row))
    said = (
        "what its mask has cost is not recorded"
        if cost is None
        else f"its mask has cost {cost:.2g} trainings besides its own"
    )
    usual = record["setup"]["steps"]
    longer = [r for r in longer_dense(record) if r["steps"] > usual]
    if row is None or not longer:
        return said
    ends = natural_list(f"{r['steps'] / usual:g} times the steps {gap_words(r['loss'] - row['loss'])}" for r in longer)
    return f"{said}, and dense with {ends} the ticket"


def gap_words(gap: float) -> str:
    return f"ends {abs(gap):.3f} {'below' if gap < 0 else 'above'}"


def edge_sentence(claims: Sequence[Row]) -> str:
    """Returns a sentence on claims in which an arm's best rate is the smallest or greatest tried, "" if there is none."""
    edges = [c for c in claims if c.get("edge")]
    if not edges:
        return ""
    beside = {
        a: list(dict.fromkeys(c["control"] or "dense" for c in edges if c["arm"] == a))
        for a in dict.fromkeys(c["arm"] for c in edges)
    }
    names = "; ".join(f"`{a}` against {natural_list(f'`{b}`' for b in of)}" for a, of in beside.items())
    return f"A best learning rate lies at the edge of those tried ({names}): what is best may lie outside."


def seeds_sentence(record: Record) -> str:
    seeds = len(seeds_of(record))
    if seeds == 1:
        return (
            "One seed: the intervals are over windows of text alone, and another seed may differ by more than they say."
        )
    few = f"; {seeds} seeds are few" if seeds < 10 else ""
    return f"The intervals are over {pluralize(seeds, 'seed')} and the windows of the text, paired{few}."


def answer_before(record: Record) -> Answer:
    arms = [a for a in arms_of(record) if a in ("early", *SCORES)]
    tried = claims_of(record, "matches", arms)
    judged = [c for c in tried if c["holds"] is not None]
    if not judged:
        reason = why_not(tried) or "no mask that was found early was compared with dense."
        return Answer(FOUND, "not known", f"Not known whether a ticket can be found before training: {reason}", "")
    before = [c for c in judged if c["arm"] in SCORES]
    held = [c for c in before if c["holds"]]
    parts = []
    if held:
        best = min(held, key=lambda c: c["density"])
        short, about = f"yes, at {density_text(best['density'])}", f"`{best['arm']}`"
        parts.append(f"Yes: `{best['arm']}` matches dense at {density_text(best['density'])}, {claim_text(best)}.")
    elif before:
        nearest = min(before, key=lambda c: c["difference"])
        few = one_rate(record, before)
        at = densities_text(sorted(before, key=lambda c: -c["density"]))
        short = "no" + (f", at {at}" if "," not in at and " " not in at else "") + (" and one rate" if few else "")
        about = f"nearest: `{nearest['arm']}` at {density_text(nearest['density'])}"
        parts.append(f"No: {arm_names(before)} {'does' if len({c['arm'] for c in before}) == 1 else 'do'} not match dense at {at}"
                     f"{few}; the nearest is `{nearest['arm']}` at {density_text(nearest['density'])}, "
                     f"{claim_text(nearest)}{ticket_there(record, nearest)}.")  # fmt: skip
    else:
        short, about = "not known", ""
        none = "" if any(c["arm"] in SCORES for c in tried) else ": none was compared with dense"
        parts.append(f"Not known of masks that are made before training{none}.")
    unknown = [c for c in tried if c["arm"] not in {j["arm"] for j in judged}]
    if unknown:
        parts.append(f"Of {arm_names(unknown)} it is not known: {why_not(unknown)}")
    parts += [*early_sentence(judged), *own_shuffles(record)]
    if any(c["holds"] for c in claims_of(record, "matches", ["random"])):
        parts.append("A random mask matches, too: this training is too easy to tell masks apart.")
    return Answer(FOUND, short, " ".join(parts), edge_sentence(judged), about=about)


def one_rate(record: Record, claims: Sequence[Row]) -> str:
    """Returns that masks of some claims were trained at one learning rate where dense had several, "" if none was."""
    tried = rates_tried(record)
    dense = max((len(tried[place_key(r)]) for r in longer_dense(record)), default=1)
    few = [c for c in claims if len(tried.get(place_key(c), ())) == 1]
    return f", where each was trained at one learning rate and dense at {dense}" if few and dense > 1 else ""


def ticket_there(record: Record, claim: Row) -> str:
    """Returns how far the ticket of the same density is from dense, "" if there is none."""
    same = [c for c in claims_of(record, "matches", TICKETS[:1]) if abs(c["density"] - claim["density"]) < 1e-6]
    near = min((c for c in same if c["difference"] is not None), key=lambda c: c["difference"], default=None)
    return f" (the ticket `{near['arm']}` there: {claim_text(near)})" if near else ""


def arm_names(claims: Sequence[Row]) -> str:
    return natural_list(f"`{a}`" for a in sorted({c["arm"] for c in claims}, key=arm_rank))


def early_sentence(judged: Sequence[Row]) -> list[str]:
    """Returns what became of the mask that stopped moving early in a training."""
    early = [c for c in judged if c["arm"] == "early"]
    if not early:
        return []
    held = [c for c in early if c["holds"]]
    shown = min(held, key=lambda c: c["density"]) if held else min(early, key=lambda c: c["difference"])
    verb = "matches" if held else "does not match; the nearest is"
    return [
        f"`early`, the mask that stopped moving early in a training, {verb} at {density_text(shown['density'])}, {claim_text(shown)}."
    ]


def own_shuffles(record: Record) -> list[str]:
    """Returns for each method where its mask beats a random one with as many weights in each tensor, and where not."""
    said, twin = [], "its own mask shuffled inside the tensors at"
    for arm in BEFORE:
        found = [c for c in claims_of(record, "beats", [arm]) if c["control"] == f"{arm}-shuffled"]
        won, lost, open_ = (
            natural_list(density_text(c["density"]) for c in found if c["holds"] is value)
            for value in (True, False, None)
        )
        if won or lost:
            verb = "beats" if won else "does not beat"
            but = f", but not at {lost}" if won and lost else ""
            said.append(f"`{arm}` {verb} {twin} {won or lost}{but}{f'; at {open_} it is not known' if open_ else ''}.")
        elif open_:
            said.append(f"It is not known whether `{arm}` beats {twin} {open_}.")
    return said


def answer_stable(record: Record, chief: Row | None) -> Answer:
    found = order_barriers(record)
    tickets = [b for b in found if b["arm"] == TICKETS[0] and b["density"] < 1]
    if chief is not None and tickets:
        near = min(tickets, key=lambda b: abs(b["density"] - chief["density"]))["density"]
    mine = [b for b in tickets if abs(b["density"] - near) < 1e-6] if chief is not None and tickets else []
    if chief is None or not mine:
        return Answer(
            STABLE,
            "not known",
            "Not known whether two copies of the ticket end in one valley: no barrier was measured.",
            "",
        )
    at = next((b for b in mine if b["rewind"] == chief["rewind"]), mine[0])
    others = [b for b in found if b["rewind_share"] == at["rewind_share"] and b not in mine
              and (b["arm"] == "dense" or abs(b["density"] - at["density"]) < 1e-6)]  # fmt: skip
    beside = natural_list(f"{b['barrier']:.3f} for `{b['arm']}`" for b in others)
    word = "yes" if at["barrier"] < STABLE_BELOW else "no"
    sentence = (f"{word.capitalize()}: the barrier between two copies of the ticket at {density_text(at['density'])}, which leave step "
                f"{at['rewind']:,} with other orders of the data, is {at['barrier']:.3f} nats a token; one valley is a barrier below "
                f"{STABLE_BELOW:g}.{f' For comparison: {beside}.' if beside else ''}")  # fmt: skip
    known = matches_at_one_rate(record, at["density"])
    if len(mine) > 1:
        words = {True: "matches", False: "does not match", None: "not known whether it matches"}
        sentence += f" At one rate, {record['setup']['lr']:g}, from " + "; from ".join(
            f"{rewind_text(b['rewind_share'])}: barrier {b['barrier']:.3f}, {words[known.get(b['rewind'])]}" for b in mine
        ) + "."  # fmt: skip
    about = (
        f"barrier {at['barrier']:.3f} of the ticket at {density_text(at['density'])}, {rewind_text(at['rewind_share'])}"
    )
    return Answer(STABLE, word, sentence, "", about=about)


def matches_at_one_rate(record: Record, density: float) -> dict[int, bool | None]:
    """Returns, by rewind point, whether the ticket of a density matches dense where it is trained at the chain's own rate,
    as the copies of a barrier are. At its best of several rates one point could match because it was tuned more."""
    found: dict[int, bool | None] = {}
    for r in record["rows"]:
        usual = is_usual(record, r) and r["lr"] == record["setup"]["lr"]
        if r["arm"] in TICKETS and usual and abs(r["density"] - density) < 1e-6 and r["difference_hi"] is not None:
            found[r["rewind"] or 0] = (
                True if r["difference_hi"] <= MATCHING else False if r["difference_lo"] > MATCHING else None
            )
    return found


def order_barriers(record: Record) -> list[dict[str, Any]]:
    """Returns the barrier between two orders of the data at each arm, density and rewind point, as the mean over seeds. A
    ticket that goes back to its first weights counts as `rewound` with k = 0, so that its barriers make one line."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for b in record["barriers"]:
        if b["kind"] == "order" and b["steps"] == record["setup"]["steps"] and b["barrier"] is not None:
            arm = TICKETS[0] if b["arm"] in TICKETS else b["arm"]
            found.setdefault((*arm_rank(arm), -round(b["density"], 6), b["rewind"]), []).append({**b, "arm": arm})
    return [
        {**of[0], "barrier": sum(b["barrier"] for b in of) / len(of), "least": min(b["barrier"] for b in of),
         "most": max(b["barrier"] for b in of), "seeds": len(of)}
        for _, of in sorted(found.items())
    ]  # fmt: skip
