"""Says what a hypothesis can and cannot say, and what it was made of."""

from lottery.report.hypothesis_answers import MATCHING, seeds_sentence
from lottery.report.hypothesis_record import (
    ARMS,
    Record,
    arms_of,
    best_rows,
    density_text,
    label,
    longer_dense,
    place_key,
    rates_tried,
    seeds_of,
)
from lottery.report.wording import natural_list, percent, pluralize

LARGE = 7e9  # weights of the models that people would like to know about


def limits(record: Record) -> list[str]:
    """Returns paragraphs on what the numbers carry and what they do not."""
    return [p for p in (size_paragraph(record), carries_over(record), cost_paragraph(record), rates_paragraph(record),
                        certainty_paragraph(record)) if p]  # fmt: skip


def size_paragraph(record: Record) -> str:
    setup, text = record["setup"], record["text"]
    seen = setup["steps"] * setup["batch"] * setup["context"]
    weights = record["parameters"]["prunable"]
    ngram = text.get("ngram") or {}
    dense = next((r["loss"] for r in longer_dense(record) if r["steps"] == setup["steps"]), None)
    beside = ""
    if dense is not None and ngram.get("report") is not None:
        gap = dense - ngram["report"]
        beside = (f" The dense network ends {abs(gap):.3f} nats a token {'below' if gap < 0 else 'above'} an n-gram model of order "
                  f"{ngram['order']}, so it {'has learned more than counts of neighbouring tokens' if gap < 0 else 'has not learned more than counts of neighbouring tokens: read every comparison here with care'}.")  # fmt: skip
    return (f"The network has {weights:,} weights that can be pruned, {float(f'{LARGE / weights:.2g}'):,.0f} times fewer than a model of 7 billion, and one "
            f"training sees {seen:,} tokens of `{text['name']}`.{beside}")  # fmt: skip


def carries_over(record: Record) -> str:
    return (
        "What carries over to a model of 7 billion weights is the question and the way to ask it: whether the place of the "
        "survivors, their first values or only their number decides, judged against controls of equal size, each at its own best "
        "rate. The figures do not carry over. Densities, barriers, rewind points and best rates change with width, depth, text and "
        "length of training; larger networks had to go back to a later step to have a ticket at all. That a ticket exists here does "
        "not show that a large model has one, and that none is found here would not show that it has none. Nothing here is about "
        "pruning a model that is trained already, which is what the rest of lottery does."
    )


def cost_paragraph(record: Record) -> str:
    trainings, setup = record["trainings"], record["setup"]
    done = [t for t in trainings if t["outcome"] == "done"]
    hours = sum(t.get("seconds") or 0 for t in trainings) / 3600
    worth = sum(t["steps"] - t.get("first", t["rewind"]) for t in done) / setup["steps"]
    spent = f", {hours:.1f} hours of training" if hours >= 0.1 else ""
    longer = any(r["steps"] > setup["steps"] for r in longer_dense(record))
    honest = ("dense with more steps stands in every table for that reason" if longer
              else "how far dense would come with those steps was not measured here")  # fmt: skip
    return (f"The run made {pluralize(len(done), 'training')}, worth {worth:,.0f} trainings of {setup['steps']:,} steps{spent}. A ticket that is "
            f"found round by round saves nothing: its mask costs several trainings of the dense network. It matches at equal steps of its last "
            f"training alone; {honest}.")  # fmt: skip


def rates_paragraph(record: Record) -> str:
    """Returns at which places the best rate is at the edge of the grid, and where there was one rate alone."""
    best = [r for r in best_rows(record) if r["arm"] != "untrained"]
    if not best:
        return ""
    tried = rates_tried(record)
    one = [r for r in best if len(tried[place_key(r)]) == 1]
    many = [r for r in best if r["edge"] and not any(r is o for o in one)]
    if not one and not many:
        return "Every best learning rate lies inside the grid that was tried."
    said = []
    if many:
        by_arm = {name: [density_text(r["density"]) for r in many if label(record, r) == name]
                  for name in dict.fromkeys(label(record, r) for r in many)}  # fmt: skip
        where = "; ".join(f"`{name}` at {natural_list(of)}" for name, of in by_arm.items())
        said.append(f"At {len(many)} of {pluralize(len(best), 'pair')} of arm and density the best learning rate is the smallest or greatest that was tried ({where}): "
                    f"there the arm may do better outside the grid, and where it is a control, the lead over it may be smaller.")  # fmt: skip
    if one:
        names = natural_list(dict.fromkeys(f"`{label(record, r)}`" for r in one))
        said.append(
            f"{len(one)} of {pluralize(len(best), 'pair')} of arm and density {'was' if len(one) == 1 else 'were'} trained at one learning rate alone ({names})."
        )
    return " ".join(said)


def certainty_paragraph(record: Record) -> str:
    claims = len(record["claims"])
    many = f" Each interval is a 95% interval by itself: among {claims} claims a few are wrong." if claims > 1 else ""
    return (f"{seeds_sentence(record)} A ticket matches if the upper end of its loss minus that of dense is at most {MATCHING:g} nats a "
            f"token, and beats a control if the upper end of its loss minus that of the control is below 0; where the interval lies on the "
            f"other side the answer is no, and where it contains the bound the answer is not known.{many}")  # fmt: skip


def not_run(record: Record) -> str:
    """Returns which arms are no part of the record, "" if none is missing."""
    missing = [a for a in ARMS if a not in arms_of(record)]
    return f"This run did not train {natural_list(f'`{a}`' for a in missing)}." if missing else ""


def facts(record: Record) -> list[tuple[str, str]]:
    """Returns (name, value) pairs on the network, the training and the text."""
    setup, text, parameters = record["setup"], record["text"], record["parameters"]
    tokens = ", ".join(f"{name} {n:,}" for name, n in text["tokens"].items())
    ngram = text.get("ngram") or {}
    pairs = [
        ("network", f"{setup['layers']} layers, width {setup['width']}, {setup['heads']} heads, MLP {setup['inner']}, vocabulary "
                    f"{setup['vocabulary']:,}, context {setup['context']}"),
        ("weights", f"{parameters['all']:,}, of which {parameters['prunable']:,} can be pruned (attention and MLP of every layer)"),
        ("training", f"{setup['steps']:,} steps of {setup['batch']} windows, AdamW, rate {setup['lr']:g}, warm-up {percent(setup['warmup'])}, "
                     f"weight decay {setup['decay']:g}, clipping {setup['clip']:g}"),
        ("pruning", f"{percent(setup['rate'])} of the living weights a round, ranked {setup['scope']}; rewind points "
                    f"{natural_list(percent(k) for k in setup['rewind']) or '0%'} of the steps"),
        ("arithmetic", "float32, " + ("compiled: equal bits are not promised" if setup["compile"] else "eager: equal bits on one machine")),
        ("seeds", natural_list(map(str, seeds_of(record)))),
        ("text", f"{text['name']}, sha256 {text['sha256'][:12]}; tokens: {tokens}; {text['bytes_per_token']:.2f} bytes a token"),
        ("windows", f"{setup['windows']['search']:,} to choose rates, {setup['windows']['report']:,} to report, of other parts of the text"),
    ]  # fmt: skip
    if ngram.get("report") is not None:
        pairs.append(("n-gram model", f"order {ngram['order']}: {ngram['report']:.3f} nats a token on the report text"))
    return pairs
