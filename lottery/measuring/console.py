"""Shows results as tables for people, with the same figures that `--json` prints."""

import io
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lottery.measuring.measurement import Measurement
from lottery.measuring.numbers import format_interval, format_metric, format_ratio, format_speed
from lottery.measuring.verdict import NOT_JUDGED, describe_verdict

LABEL = "coherent, to a reader:"


def render(*parts: Any) -> str:
    """Returns plain text of any width, which is the same on a terminal and in a file."""
    out = io.StringIO()
    console = Console(file=out, width=400, no_color=True, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:,.2f}"


def result_table(found: Measurement) -> Table:
    """Returns a table with the dense row first, then the ticket's. Columns without a figure are left out."""
    table = Table(box=box.MARKDOWN)
    columns = {
        "": lambda title, m: title,
        "perplexity [95%]": lambda title, m: format_interval(m, "perplexity", 2),
        "ratio to dense [95%]": lambda title, m: (
            "1" if m is found.dense and "perplexity" in m else format_interval(m, "perplexity_ratio", 4)
        ),
        "bits/byte": lambda title, m: format_metric(m, "bits_per_byte", 4),
        "file MB": lambda title, m: megabytes(m.get("disk_bytes")),
        "in memory MB": lambda title, m: megabytes(m.get("weights_bytes")),
        "prefill tok/s": lambda title, m: format_speed(m, "prefill_tok_s"),
        "decode tok/s [quartiles]": lambda title, m: format_speed(m, "decode_tok_s"),
        "floor tok/s": lambda title, m: format_speed(m, "decode_floor_tok_s"),
    }
    rows = [("dense", found.dense)] if found.dense else []
    rows.append((found.title, found.metrics))
    cells = [[column(*row) for column in columns.values()] for row in rows]
    used = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in cells)]
    for i in used:
        table.add_column(list(columns)[i], justify="left" if i == 0 else "right")
    for row in cells:
        table.add_row(*(row[i] for i in used))
    return table


def runtime_note(quantize: str, runtime: str) -> str:
    """Returns a line that says what the figures of speed and memory apply to."""
    if runtime == "packed":
        return "stored packed, runs packed: each matrix is unpacked for its product; that saves memory and costs time"
    if runtime == "sparse":
        return (
            "stored sparse, runs sparse: a decoded token is multiplied straight from bitmask and values; for a prompt "
            "each matrix is unpacked"
        )
    if quantize == "int8":
        how = "runs in bitsandbytes' int8 layers (activations are rounded too): the zeros save disk alone"
    elif quantize == "fp8":
        how = "held as float8 and dequantized for each product: the zeros save disk alone"
    else:
        how = "runs dense: the zeros save disk, not time or memory"
    return f"stored sparse, {how} (runtime=sparse computes with what is stored)"


def summary_lines(found: Measurement) -> list[str]:
    """Returns the lines below the table: sizes, protocol, control, verdict."""
    m, tags = found.metrics, found.tags
    lines = []
    if "disk_ratio" in m and found.kind != "dense":
        lines.append(
            f"ticket {found.ticket}: zeros are {m['sparsity_target']:.2%} of the target, "
            f"{m['sparsity_prunable']:.2%} of the prunable and {m['sparsity_model']:.2%} of all weights; "
            f"the file is {m['disk_ratio']:.3f} of the base's"
        )
    if found.protocol:
        lines.append(f"protocol {found.protocol.id}: {found.protocol.describe()}")
    if "rounding_zeros" in m:
        lines.append(f"{m['rounding_zeros']:,.0f} more weights became zero by rounding to 8 bits")
    if found.kind != "dense" and ("decode_tok_s" in m or "weights_bytes" in m):
        lines.append(runtime_note(found.quantize, found.params.get("runtime", "dense")))
    if "control_perplexity" in m:
        lines.append(
            f"control: random tickets of the same size have a perplexity of "
            f"{format_metric(m, 'control_perplexity', 2)}, from {format_metric(m, 'control_perplexity_lo', 2)} to "
            f"{format_metric(m, 'control_perplexity_hi', 2)}; this ticket's ratio to them is "
            f"{format_interval(m, 'control_ratio', 4)}; {beats_control(tags)}"
        )
    if "winner" in tags:
        lines.append(verdict_line(found))
    if "outcome" in tags:
        lines.append(outcome_line(found))
    if "coherent" in tags:
        lines.append(label_line(tags))
    return lines


def beats_control(tags: Mapping[str, str]) -> str:
    """Returns whether the ticket beats its controls, or why that is not judged."""
    verdict = tags.get("beats_control", "not known")
    if verdict.startswith(NOT_JUDGED):
        return f"whether it beats them is {verdict}"
    return f"beats them: {verdict}"


def verdict_line(found: Measurement) -> str:
    """Returns the line that says whether the ticket wins, or why it is not judged and what would judge it."""
    m, verdict = found.metrics, describe_verdict(found.tags)
    allowed = f"allowed is {1 + float(found.params.get('tolerance', 0.1)):g}"
    upper = (
        f"the ratio's upper end is {format_ratio(m['perplexity_ratio_hi'])}, {allowed}"
        if "perplexity_ratio_hi" in m
        else ""
    )
    if verdict.startswith(NOT_JUDGED):
        way_out = "limit=none measures them all" if "limited" in found.tags else "give a longer text"
        return f"{verdict} ({f'{upper}; ' if upper else ''}{way_out})"
    return f"winner: {verdict} ({upper})"


def outcome_line(found: Measurement) -> str:
    """Returns the line of the outcome. For an overflow it names the type and a way out: float16 ends at 65,504."""
    outcome = found.tags["outcome"]
    if outcome != "overflow" or not found.protocol:
        return f"outcome: {outcome}"
    wider = {"float16": "give dtype=float32 or bfloat16", "bfloat16": "give dtype=float32"}
    way_out = wider.get(found.protocol.dtype, "no type is wider: give a lower sparsity, or check the base model")
    return f"outcome: {outcome} ({found.protocol.dtype}; {way_out})"


def label_line(tags: Mapping[str, str]) -> str:
    """Returns the line of a person's judgement, as every output shows it."""
    note = f" ({tags['note']})" if tags.get("note") else ""
    return f"{LABEL} {tags['coherent']}{note}"


def ticket_table(found: Measurement, uri: str | None, path: str | None, page: str | None) -> str:
    """Returns what `prune` and `evaluate` print: the table, the lines below it, a sample, and where the ticket is."""
    lines = summary_lines(found)
    if found.samples:
        lines.append(f"sample: {found.samples[0]['text']!r}")
        if "dense" in found.samples[0]:
            lines.append(f"dense:  {found.samples[0]['dense']!r}")
    if uri:
        lines.append(f"{'registered' if found.kind == 'ticket' else 'ticket'}: {uri}")
    if path:
        lines.append(f"folder: {path}")
    if page:
        lines.append(f"browse: {page}")
    return render(result_table(found), *lines)
