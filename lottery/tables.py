"""Results as tables for people: the same figures that `--json` prints, the dense row first."""

import io
import math
import re
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lottery.doctor import Check
from lottery.study import Ticket


def render(*parts: Any) -> str:
    """Plain text, as wide as it needs to be: the same on a terminal and in a file."""
    out = io.StringIO()
    console = Console(file=out, width=400, no_color=True, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:,.2f}"


def with_interval(metrics: Mapping[str, float], name: str, digits: int) -> str:
    if name not in metrics:
        return ""
    text = f"{metrics[name]:,.{digits}f}"
    if f"{name}_lo" in metrics:
        text += f" [{metrics[f'{name}_lo']:,.{digits}f}, {metrics[f'{name}_hi']:,.{digits}f}]"
    return text


def plain(metrics: Mapping[str, float], name: str, digits: int) -> str:
    return f"{metrics[name]:,.{digits}f}" if name in metrics else ""


def result_table(ticket: Ticket) -> Table:
    table = Table(box=box.MARKDOWN)
    columns = {
        "": lambda title, m: title,
        "perplexity [95%]": lambda title, m: with_interval(m, "perplexity", 2),
        "ratio to dense [95%]": lambda title, m: (
            "1" if m is ticket.dense and "perplexity" in m else with_interval(m, "perplexity_ratio", 4)
        ),
        "bits/byte": lambda title, m: plain(m, "bits_per_byte", 4),
        "file MB": lambda title, m: megabytes(m.get("disk_bytes")),
        "in memory MB": lambda title, m: megabytes(m.get("weights_bytes")),
        "prefill tok/s": lambda title, m: plain(m, "prefill_tok_s", 0),
        "decode tok/s [quartiles]": lambda title, m: with_interval(m, "decode_tok_s", 0),
        "floor tok/s": lambda title, m: plain(m, "decode_floor_tok_s", 0),
    }
    rows = (
        [("dense", ticket.dense), (ticket.title, ticket.metrics)] if ticket.dense else [(ticket.title, ticket.metrics)]
    )
    cells = [[column(*row) for column in columns.values()] for row in rows]
    used = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in cells)]
    for i in used:
        table.add_column(list(columns)[i], justify="left" if i == 0 else "right")
    for row in cells:
        table.add_row(*(row[i] for i in used))
    return table


def ticket_table(ticket: Ticket) -> str:
    m = ticket.metrics
    lines = [
        f"ticket {ticket.ticket}: zeros are {m['sparsity_target']:.2%} of the target, "
        f"{m['sparsity_prunable']:.2%} of the prunable and {m['sparsity_model']:.2%} of all weights; "
        f"the file is {m['disk_ratio']:.3f} of the base's"
    ]
    if ticket.protocol:
        lines.append(f"protocol {ticket.protocol.id}: {ticket.protocol.line()}")
    if "rounding_zeros" in m:
        lines.append(f"{m['rounding_zeros']:,.0f} more weights became zero by rounding to 8 bits")
    if "decode_tok_s" in m or "weights_bytes" in m:
        lines.append(ticket.memory)
    if "control_perplexity" in m:
        lines.append(
            f"control: random tickets of the same size have {plain(m, 'control_perplexity', 2)}, from "
            f"{plain(m, 'control_perplexity_lo', 2)} to {plain(m, 'control_perplexity_hi', 2)}; this one's ratio to them is "
            f"{with_interval(m, 'control_ratio', 4)}: beats them: {ticket.tags.get('beats_control', 'not known')}"
        )
    if "winner" in ticket.tags:
        limited = f"; measured on {ticket.tags['limited']} windows only" if "limited" in ticket.tags else ""
        upper = f"the ratio's upper end is {m['perplexity_ratio_hi']:.4f}, allowed is {1 + ticket.tolerance:g}"
        lines.append(f"winner: {ticket.tags['winner']} ({upper}{limited})")
    if "outcome" in ticket.tags:
        lines.append(f"outcome: {ticket.tags['outcome']}")
    if ticket.samples:
        lines.append(f"sample: {ticket.samples[0]['text']!r}")
        if "dense" in ticket.samples[0]:
            lines.append(f"dense:  {ticket.samples[0]['dense']!r}")
    if "coherent" in ticket.tags:
        note = f" ({ticket.tags['note']})" if ticket.tags.get("note") else ""
        lines.append(f"coherent, to a reader: {ticket.tags['coherent']}{note}")
    if ticket.model_uri:
        lines.append(f"{'registered' if ticket.tags['kind'] == 'ticket' else 'ticket'}: {ticket.model_uri}")
    if ticket.path:
        lines.append(f"folder: {ticket.path}")
    return render(result_table(ticket), *lines)


def spans(numbers: list[int]) -> str:
    """0, 1, 2, 5 -> 0-2, 5"""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def plan_table(plan: dict[str, Any]) -> str:
    """One row for the same matrix of several layers; `--json` lists every tensor."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for name, entry in plan["tensors"].items():
        if "requested" in entry:
            every = re.sub(r"\.\d+\.", ".*.", name)  # all layers, and all experts of a layer
            groups.setdefault((every, entry["role"], " x ".join(map(str, entry["shape"])), entry["dtype"]), []).append(
                entry
            )
    table = Table(box=box.MARKDOWN)
    for column in ("tensor", "role", "shape", "type", "layers", "removed", "of", "MB after"):
        table.add_column(column, justify="right" if column in ("removed", "of", "MB after") else "left")
    for key, entries in groups.items():
        numel = sum(math.prod(e["shape"]) for e in entries)
        removed = numel - sum(e["kept"] for e in entries)
        layers = spans([e["layer"] for e in entries if "layer" in e])
        table.add_row(*key, layers, f"{removed:,}", f"{numel:,}", megabytes(sum(e["bytes"] for e in entries)))
    eight = sum("quantized" in e for e in plan["tensors"].values())
    untouched = sum("requested" not in e and "quantized" not in e for e in plan["tensors"].values())
    shares = ", ".join(f"{role} {share:.1%}" for role, share in plan["shares"].items())
    if plan["tied"]:
        shares += " (the head is the embedding matrix itself)"
    dropped = [f"left out, a buffer or a copy: {', '.join(plan['dropped'])}"] if plan["dropped"] else []
    return render(
        table,
        *plan["notes"],
        f"{plan['base']}: {plan['parameters']:,} parameters: {shares}",
        f"ticket {plan['ticket'] or '(no weights are here, so it has no name yet)'}: {plan['target']} of {plan['base']} to {plan['sparsity']:.2%}; "
        f"{f'{eight} tensors are stored in 8 bits; ' if eight else ''}{untouched} tensors stay as they are",
        f"zeros: {plan['sparsity_target']:.2%} of the target, {plan['sparsity_prunable']:.2%} of the prunable, "
        f"{plan['sparsity_model']:.2%} of all weights",
        f"on disk: {megabytes(plan['disk_bytes_before'])} MB before, {megabytes(plan['disk_bytes_after'])} MB after",
        *dropped,
    )


def export_text(found: dict[str, Any]) -> str:
    form = {"dense": "an ordinary model", "fp8": "compressed-tensors, fp8", "int8": "compressed-tensors, int8"}
    lines = [
        f"ticket {found['ticket']} as {form[found['format']]}: {megabytes(found['disk_bytes'])} MB, "
        f"{found['disk_ratio']:.3f} of the base's",
        f"zeros: {found['sparsity_target']:.2%} of the target, {found['sparsity_prunable']:.2%} of the prunable, "
        f"{found['sparsity_model']:.2%} of all weights",
    ]
    if "quantized" in found:
        lines.append(
            f"{found['quantized']} matrices are in 8 bits; {found['rounding_zeros']:,} more weights are zero by rounding"
        )
    return render(*lines, *found["notes"], f"folder: {found['path']}", f"to load it: {found['load']}")


def doctor_table(checks: list[Check]) -> str:
    table = Table(box=box.MARKDOWN)
    for name in ("check", "", "found"):
        table.add_column(name)
    for check in checks:
        table.add_row(check.name, "ok" if check.fine else "FAIL", check.found)
    return render(table)
