"""Answers questions of a study, each with how sure the answer is. It works on rows and arrays, without MLflow.

A row is a mapping, a record of `Results.rows`. Answers compare the mean NLL per token: the difference between a ticket
and the dense base is the logarithm of the ratio of their perplexities. How sure an answer is comes from resampling the
evaluation windows (measuring/intervals.py).

Legend: T targets.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lottery.measuring.intervals import RESAMPLES, difference_interval
from lottery.measuring.numbers import format_ratio
from lottery.measuring.verdict import LEAST_WINDOWS
from lottery.report.cliffs import main_cliffs
from lottery.report.grouping import Row, group_by, measured_tickets, number, setting
from lottery.report.judging import has_few_windows, mark_estimate, reasons_not_judged, with_reasons
from lottery.report.rankings import LEAST_TARGETS, Nll, Ranking, compare_rankings
from lottery.report.wording import format_range, natural_list, percent, pluralize

NOT_KNOWN = "not known: this needs "
USABLE = 2.0  # ratio to dense: of a ticket beyond it, what 8 bits cost on top says little


@dataclass(frozen=True)
class Answer:
    """`short`: the answer in a word or two for a headline, and `about`: what these words refer to; `sentence`: the full
    answer; `sure`: how sure it is and what it rests on; `data`: the rows that its figure shows. If nothing is known,
    `short` is empty and `sentence` begins with "not known"."""

    question: str
    short: str
    sentence: str
    sure: str
    data: tuple[dict[str, Any], ...] = ()
    about: str = ""

    @property
    def known(self) -> bool:
        return bool(self.short)


def open_line(found: Sequence[tuple[str, str]]) -> str:
    """Returns (question, sentence) pairs of unknown answers as one line that names what each would need, "" for none."""
    if not found:
        return ""
    needs = "; ".join(f'"{question}" needs {sentence.removeprefix(NOT_KNOWN)}' for question, sentence in found)
    return f"Not answered here: {needs}."


def unknown(question: str, needs: str) -> Answer:
    """Returns the answer to a question that the tickets leave open; `needs` says what would answer it."""
    return Answer(question, "", f"{NOT_KNOWN}{needs}", "")


def answer_ranking(found: Sequence[Ranking]) -> Answer:
    question = "Where is it?"
    if not found:
        return unknown(question, "tickets of two targets at one sparsity, with the NLL of their windows")
    sentences, sure = [], []
    for (base, by, cells, how), members in group_by(found, lambda r: (r.base, r.by, r.cells, r.setting)).items():
        equal = "at equal budget" if by == "budget" else "at equal sparsity"
        sentences.append(f"{base}{f' ({how})' if how else ''}: {equal}, {least_and_most_damaged(members)}.")
        certain, pairs = sum(r.certain for r in members), sum(r.pairs for r in members)
        sure.append(f"{base}, {equal}: the order of {certain} of {pluralize(pairs, 'pair')} of targets is certain.")
        if by == "sparsity" and not cells:
            sure += range_removed(members)
    sure.append(
        "An order is certain if the paired 95% interval of the difference over the windows does not hold 0, from "
        f"{LEAST_WINDOWS} windows on; each pair is tested by itself."
    )
    (short, about), why = ranking_headline(found), [r.not_judged for r in found]
    data = tuple(ranking_rows(found))
    return Answer(
        question, mark_estimate(short, why), "\n".join(sentences), "\n".join(sure), data, with_reasons(about, why)
    )


def least_and_most_damaged(members: Sequence[Ranking]) -> str:
    """Returns the clauses that name the target at either end of each level's ranking."""
    return "; ".join(
        f"at {r.at} `{r.targets[0]}` loses least (ratio {format_ratio(math.exp(r.log_ratio_T[0]))}) and `{r.targets[-1]}` most "
        f"({format_ratio(math.exp(r.log_ratio_T[-1]))})"
        for r in members
    )


def range_removed(members: Sequence[Ranking]) -> list[str]:
    """Returns one sentence on how different the removed shares of all weights are, or none if they are not known."""
    removed = np.concatenate([r.removed_T for r in members])
    if not np.isfinite(removed).any():
        return []
    low, high = (percent(float(end(removed)), 1) for end in (np.nanmin, np.nanmax))
    return [f"Equal sparsity is not equal budget: these tickets lose from {low} to {high} of all weights."]


def ranking_headline(found: Sequence[Ranking]) -> tuple[str, str]:
    """Returns (the target that is most often the least damaged, what it is of), for tickets pruned in the default way,
    or for all if none are.

    Rankings at an equal budget come before those at an equal sparsity, since that is the fairer question; rankings of
    parts of the model come before those of single layers.
    """
    usual = [r for r in found if not r.setting] or found
    best = [((r.by == "budget", not r.cells), r.base, r.targets[0]) for r in usual]
    fairest = max(rank for rank, _, _ in best)
    tops = group_by([b for b in best if b[0] == fairest], lambda b: b[1])
    top = {base: Counter(t for _, _, t in of_base).most_common(1)[0][0] for base, of_base in tops.items()}
    if len(set(top.values())) > 1:
        about = "; ".join(f"{base}: `{t}`" for base, t in list(top.items())[:6])
        return "it differs", about + (f"; and {len(top) - 6} more" if len(top) > 6 else "")
    part = len(top) < len({base for _, base, _ in best})
    alone = f" ({natural_list(top)} alone)" if part else ""
    return next(iter(top.values())), f"loses least at equal {'budget' if fairest[0] else 'sparsity'}{alone}"


def ranking_rows(found: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Returns one row for each target of each ranking."""
    return [
        {
            "base": r.base, "protocol": r.protocol, "setting": r.setting, "by": r.by, "level": r.level, "at": r.at,
            "cells": r.cells, "target": t, "rank": i + 1, "ratio": math.exp(r.log_ratio_T[i]),
            "lo": math.exp(r.lo_T[i]), "hi": math.exp(r.hi_T[i]), "removed": float(r.removed_T[i]),
            "before_next": bool(i + 1 < len(r.targets) and r.order_TT[i, i + 1] > 0),
            "certain_better_than": [r.targets[j] for j in np.flatnonzero(r.order_TT[i] > 0)],
        }
        for r in found
        for i, t in enumerate(r.targets)
    ]  # fmt: skip


def answer_agreement(found: Sequence[Ranking], resamples: int = RESAMPLES) -> Answer:
    question = "Is it the same in every model?"
    bases = list(dict.fromkeys(r.base for r in found))
    if len(bases) < 2:
        return unknown(question, f"two models whose targets were ranked{f', not only {bases[0]}' if bases else ''}")
    data = []
    for members in group_by(found, lambda r: (r.by, r.level, r.cells, r.setting)).values():
        for first, second in combinations(members, 2):
            if first.base != second.base and (row := compare_rankings(first, second, resamples)):
                data.append(row)
    if not data:
        return unknown(question, f"two models that have {LEAST_TARGETS} targets in common at one level")
    taus = [row["tau"] for row in data]
    alike, against = sum(row["certain"] > 0 for row in data), sum(row["certain"] < 0 for row in data)
    one = data[0]
    spread = (
        f"{min(taus):.2f}" if len(data) == 1 else f"{min(taus):.2f} to {max(taus):.2f}, median {np.median(taus):.2f}"
    )
    if len(data) == 1:
        spread += f" [{one['lo']:.2f}, {one['hi']:.2f}]"
    levels = natural_list(dict.fromkeys(row["at"] for row in data))
    same, flipped = sum(len(row["same"]) for row in data), sum(len(row["reversed"]) for row in data)
    if alike == len(data):
        verdict, short = "yes, more alike than by chance", "alike"
    elif alike and (against or flipped):
        verdict, short = "in part", "in part"
    elif alike or against:
        rest = "" if alike + against == len(data) else ", where it is known at all"
        verdict, short = (f"yes{rest}", "alike") if alike else (f"no, it is rather reversed{rest}", "reversed")
    else:
        verdict, short = "that is open", "open"
    sentence = (
        f"{verdict[0].upper()}{verdict[1:]}: Kendall's tau between the orders of the targets is {spread} "
        f"({pluralize(len(bases), 'model')}, at {levels}; 1 is the same order, 0 as many pairs alike as reversed, -1 the reverse)."
    )
    pairs = sum(row["pairs"] for row in data)
    few = sum(row["windows"] < LEAST_WINDOWS for row in data)
    why = [r.not_judged for r in found]
    sure = (
        f"Of {pluralize(len(data), 'comparison')} the orders are certainly more alike than reversed in {alike} (the 95% interval of tau lies "
        f"above 0), more reversed than alike in {against}, and it is open in {len(data) - alike - against - few}{f'; {few} rest on fewer than {LEAST_WINDOWS} windows, which decide nothing' if few else ''}. Of {pluralize(pairs, 'pair')} of targets {same} are in the same order in both models with "
        f"certainty, {flipped} in reversed order, of {pairs - same - flipped} it is not known."
    )
    about = with_reasons(f"by Kendall's tau: {spread}", why)
    return Answer(question, mark_estimate(short, why), sentence, sure, tuple(data), about)


def answer_quantization(rows: Sequence[Row], nll: Nll) -> Answer:
    """Compares a ticket in 8 bits with the same ticket in 16: the ratio of the perplexities, with its paired 95%
    interval."""
    question = "Prune and quantize: what do 8 bits cost on top?"
    data = []

    def key(r: Row) -> tuple[Any, ...]:
        return r["base"], r["protocol"], r["target"], number(r, "sparsity"), setting(r, "quantize"), number(r, "budget")

    for members in group_by(measured_tickets(rows), key).values():
        whole = next((r for r in members if r.get("quantize") == "none"), None)
        before = nll(str(whole["run_id"])) if whole else None
        for r in members:
            if r is whole or r.get("quantize") in ("none", None) or whole is None or before is None:
                continue
            after = nll(str(r["run_id"]))
            if after is None or len(after) != len(before) or not np.isfinite(after - before).all():
                continue
            lo, hi = difference_interval(after - before)
            data.append(
                {
                    "base": r["base"], "protocol": r["protocol"], "target": r["target"],
                    "sparsity": number(r, "sparsity") or 0.0, "quantize": r["quantize"], "arithmetic": quantization_scheme(r),
                    "ratio": math.exp((after - before).mean()), "lo": math.exp(lo), "hi": math.exp(hi),
                    "disk_ratio": number(r, "disk_ratio"), "disk_ratio_16": number(whole, "disk_ratio"),
                    "dense_ratio": number(whole, "perplexity_ratio"),
                    "windows": len(after), "not_judged": next(iter(reasons_not_judged([r, whole])), ""),
                }
            )  # fmt: skip
    if not data:
        return unknown(question, "a ticket that was measured both in 16 and in 8 bits")
    parts, sure = [], []
    for kind, of_kind in group_by(data, lambda r: r["arithmetic"]).items():
        worst = max(of_kind, key=lambda r: r["ratio"])
        costs, gains = (sum(is_sure and r["windows"] >= LEAST_WINDOWS for r, is_sure in ends)
                        for ends in ([(r, r["lo"] > 1) for r in of_kind], [(r, r["hi"] < 1) for r in of_kind]))  # fmt: skip
        few = sum(r["windows"] < LEAST_WINDOWS for r in of_kind)
        parts.append(
            f"{kind}: {format_range([r['ratio'] for r in of_kind])} times the perplexity of the same "
            f"ticket in 16 bits, the most at {percent(worst['sparsity'])} of `{worst['target']}` ({worst['base']}{beside_dense(worst)})"
        )
        sure.append(
            f"{kind}: of {pluralize(len(of_kind), 'pair')} of tickets {costs} are certainly worse in 8 bits and {gains} certainly better (paired 95%)"
            + (f"; {few} rest on fewer than {LEAST_WINDOWS} windows, which decide nothing." if few else ".")
        )
    usable = [r for r in data if r["dense_ratio"] is not None and r["dense_ratio"] <= USABLE]
    top = max(r["ratio"] for r in usable or data) - 1
    short = f"under {percent(max(math.ceil(1000 * top) / 1000, 0.001), 1)}" if top < 0.1 else f"up to {top:.0%}"
    why = [r["not_judged"] for r in data]
    about = with_reasons(
        f"more perplexity than the same ticket in 16 bits{f', of tickets up to {USABLE:g} times dense' if len(usable or data) < len(data) else ''}",
        why,
    )
    return Answer(question, mark_estimate(short, why), f"{'; '.join(parts)}.", " ".join(sure), tuple(data), about)


def beside_dense(r: Row) -> str:
    """Returns how far a ticket is from dense in 16 bits: 15% more of a ticket that has lost all says little."""
    return "" if r["dense_ratio"] is None else f", in 16 bits {format_ratio(r['dense_ratio'])} times dense"


def quantization_scheme(r: Row) -> str:
    """Returns the scheme's name. int8 has two: bitsandbytes (runtime `dense`) also rounds activations to 8 bits."""
    if r["quantize"] != "int8":
        return str(r["quantize"])
    return "int8 (w8a8)" if r.get("runtime", "dense") == "dense" else "int8 (w8a16)"


def answer_model_size(rows: Sequence[Row]) -> Answer:
    question = "Do bigger models hold better tickets?"
    of_all = [c for c in main_cliffs(rows) if c.at is not None]
    known = sorted((c for c in of_all if c.parameters), key=lambda c: c.parameters or 0)
    if len({c.parameters for c in known}) < 2:
        lack = "two models whose cliff was found"
        if len(of_all) > len(known):
            lack = "the sizes of the models: the runs do not say how many weights they have"
        return unknown(question, lack)
    pairs = [(a, b) for a, b in combinations(known, 2) if a.parameters != b.parameters]
    few = [has_few_windows(c.not_judged) for c in known]
    ends = [
        (-math.inf if f or c.lo is None else c.lo, math.inf if f or c.hi is None else c.hi)
        for c, f in zip(known, few, strict=True)
    ]
    place = {c.base: e for c, e in zip(known, ends, strict=True)}
    up = sum(place[a.base][1] < place[b.base][0] for a, b in pairs)
    down = sum(place[b.base][1] < place[a.base][0] for a, b in pairs)
    words = {(True, False): ("yes, in these", "yes, here"), (False, True): ("no, the smaller do in these", "no, here")}
    verdict, short = words.get((up == len(pairs), down == len(pairs)), ("not one way", "not one way"))
    if not up and not down:
        verdict, short = "that is open", "open"
    families = sorted({c.family or "unknown" for c in known})
    cliffs_said = "; ".join(f"{c.base} ({c.parameters or 0:,.0f} weights): {c.text}" for c in known)
    sure = (
        f"This rests on {pluralize(len(known), 'model')} of {pluralize(len(families), 'family')} ({natural_list(families)}): the bigger model of "
        f"{pluralize(len(pairs), 'pair')} has the later cliff in {up} and the earlier in {down} with bands apart. "
        f"{f'A cliff of fewer than {LEAST_WINDOWS} windows decides nothing. ' if any(few) else ''}Models differ in more "
        f"than their size, for example in what they were trained on and how long."
    )
    if len({c.protocol for c in known}) > 1:
        sure += (
            " They were not measured under one protocol (text, window, arithmetic), so these cliffs compare roughly."
        )
    data = tuple(c.__dict__ for c in known)
    rests, why = (
        f"over {pluralize(len(known), 'model')} of {pluralize(len(families), 'family')}",
        [c.not_judged for c in known],
    )
    sentence = f"{verdict[0].upper()}{verdict[1:]}: {cliffs_said}."
    return Answer(question, mark_estimate(short, why), sentence, sure, data, with_reasons(rests, why))
