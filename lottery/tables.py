"""Results as tables for people: the same figures that `--json` prints, the dense row first."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lottery.listing import Row
from lottery.measurement import Measurement

LABEL = "coherent, to a reader:"


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


def result_table(found: Measurement) -> Table:
    """The dense row first, then the ticket's; columns without a figure are left out."""
    table = Table(box=box.MARKDOWN)
    columns = {
        "": lambda title, m: title,
        "perplexity [95%]": lambda title, m: with_interval(m, "perplexity", 2),
        "ratio to dense [95%]": lambda title, m: (
            "1" if m is found.dense and "perplexity" in m else with_interval(m, "perplexity_ratio", 4)
        ),
        "bits/byte": lambda title, m: plain(m, "bits_per_byte", 4),
        "file MB": lambda title, m: megabytes(m.get("disk_bytes")),
        "in memory MB": lambda title, m: megabytes(m.get("weights_bytes")),
        "prefill tok/s": lambda title, m: plain(m, "prefill_tok_s", 0),
        "decode tok/s [quartiles]": lambda title, m: with_interval(m, "decode_tok_s", 0),
        "floor tok/s": lambda title, m: plain(m, "decode_floor_tok_s", 0),
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


def in_memory(quantize: str, runtime: str) -> str:
    """What a run's figures of speed and memory are about."""
    if runtime == "packed":
        return "stored packed, runs packed: each matrix is widened for its product; that saves memory and costs time"
    if quantize == "int8":
        return (
            "stored sparse, runs in bitsandbytes' int8 layers (activations are rounded too): the zeros save disk alone"
        )
    if quantize == "fp8":
        return "stored sparse, held as float8 and widened for each product: the zeros save disk alone"
    return "stored sparse, runs dense: the zeros save disk, not time or memory"


def findings(found: Measurement) -> list[str]:
    """What one measuring says beside its figures: sizes, protocol, control, verdict; a line each."""
    m, tags = found.metrics, found.tags
    lines = []
    if "disk_ratio" in m and found.kind != "dense":
        lines.append(
            f"ticket {found.ticket}: zeros are {m['sparsity_target']:.2%} of the target, "
            f"{m['sparsity_prunable']:.2%} of the prunable and {m['sparsity_model']:.2%} of all weights; "
            f"the file is {m['disk_ratio']:.3f} of the base's"
        )
    if found.protocol:
        lines.append(f"protocol {found.protocol.id}: {found.protocol.line()}")
    if "rounding_zeros" in m:
        lines.append(f"{m['rounding_zeros']:,.0f} more weights became zero by rounding to 8 bits")
    if found.kind != "dense" and ("decode_tok_s" in m or "weights_bytes" in m):
        lines.append(in_memory(found.quantize, found.params.get("runtime", "dense")))
    if "control_perplexity" in m:
        lines.append(
            f"control: random tickets of the same size have {plain(m, 'control_perplexity', 2)}, from "
            f"{plain(m, 'control_perplexity_lo', 2)} to {plain(m, 'control_perplexity_hi', 2)}; this one's ratio to them is "
            f"{with_interval(m, 'control_ratio', 4)}: beats them: {tags.get('beats_control', 'not known')}"
        )
    if "winner" in tags:
        limited = f"; measured on {tags['limited']} windows only" if "limited" in tags else ""
        allowed = 1 + float(found.params.get("tolerance", 0.1))
        upper = f"the ratio's upper end is {m['perplexity_ratio_hi']:.4f}, allowed is {allowed:g}"
        lines.append(f"winner: {tags['winner']} ({upper}{limited})")
    if "outcome" in tags:
        lines.append(outcome_line(found))
    if "coherent" in tags:
        lines.append(label_line(tags))
    return lines


def outcome_line(found: Measurement) -> str:
    """Of an overflow with the type and the way out: float16 ends at 65,504, the others do not."""
    outcome = found.tags["outcome"]
    if outcome != "overflow" or not found.protocol:
        return f"outcome: {outcome}"
    wider = {"float16": "give dtype=float32 or bfloat16", "bfloat16": "give dtype=float32"}
    way_out = wider.get(
        found.protocol.dtype, "no type is wider: give a lower sparsity, or see whether the base is sound"
    )
    return f"outcome: {outcome} ({found.protocol.dtype}; {way_out})"


def label_line(tags: Mapping[str, str]) -> str:
    """A person's judgement, wherever it is read."""
    note = f" ({tags['note']})" if tags.get("note") else ""
    return f"{LABEL} {tags['coherent']}{note}"


def ticket_table(found: Measurement, uri: str | None, path: str | None, page: str | None) -> str:
    lines = findings(found)
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


def list_table(rows: Sequence[Row]) -> str:
    """One line a version. What is the same in all and unremarkable (the default method, ...) gets no column."""
    if not rows:
        return "no ticket is registered that fits"
    several = len({r.arithmetic for r in rows} - {""}) > 1
    columns: dict[str, Callable[[Row], str]] = {
        "ticket": lambda r: r.uri.removeprefix("models:/"),
        "target": lambda r: r.params.get("target", ""),
        "sparsity": lambda r: f"{100 * float(r.params['sparsity']):g}%" if "sparsity" in r.params else "",
        **{name: column(name) for name in ("method", "scope", "pattern", "quantize", "storage")},
        "perplexity [95%]": lambda r: with_interval(r.metrics, "perplexity", 2) or r.outcome or "",
        "ratio to dense [95%]": lambda r: with_interval(r.metrics, "perplexity_ratio", 4),
        "on": lambda r: r.dataset or "",
        "arithmetic": lambda r: r.arithmetic if several else "",
        "file MB": lambda r: megabytes(r.metrics.get("disk_bytes")),
        "winner": lambda r: r.winner or "",
        "coherent": lambda r: r.coherent or "",
        "aliases": lambda r: ", ".join(r.aliases),
    }
    usual = {
        "method": "magnitude",
        "scope": "layer",
        "pattern": "unstructured",
        "quantize": "none",
        "storage": "packed",
    }
    table = Table(box=box.MARKDOWN)
    shown = {n: of for n, of in columns.items() if n == "winner" or {of(r) for r in rows} - {"", usual.get(n, "")}}
    for name in shown:
        numeric = name in ("sparsity", "perplexity [95%]", "ratio to dense [95%]", "file MB")
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(of(row) for of in shown.values()))
    return render(table)


def study_table(result: Any, markdown: bool = False) -> str:
    """A study's tickets, the dense ones first, and what they say together. `result`: a study's."""
    lines = [f"{r.title} of {r.base}: {r.reason}" for r in result.rows if r.reason]
    lines += [f"left out: {left['reason']} ({left['model']})" for left in result.plan.left_out]
    for c in result.cliffs:
        where = f"between {c.below:.2%} and {c.above:.2%}" if c.above < 1 else f"beyond {c.below:.2%}"
        lines.append(f"cliff of {c.title}, {c.base}: the ratio to dense crosses {c.limit:g} {where}")
    protocols = list(dict.fromkeys(row.tags["protocol"] for row in result.rows if "protocol" in row.tags))
    models = len({row.base for row in result.rows}) > 1
    tables = [rows_table(result.rows, models)]
    if len(protocols) > 1:  # a table each, what was not measured in the first
        of_protocol = {p: [r for r in result.rows if r.tags.get("protocol", protocols[0]) == p] for p in protocols}
        tables = [f"protocol {protocol}:\n{rows_table(rows, models)}\n" for protocol, rows in of_protocol.items()]
        lines.append(f"{len(protocols)} protocols: perplexities compare within one of them only")
    if markdown:
        return "\n".join([*tables, "", *(f"- {line}" for line in lines)])
    return render(*tables, *lines)


def rows_table(rows: Sequence[Any], models: bool) -> str:
    """The rows of a study, with their model where there are several; columns without a figure are left out."""
    columns: dict[str, Callable[[Any], str]] = {
        "model": lambda r: r.base if models else "",
        "": lambda r: r.title,
        "of all weights": lambda r: f"{m['sparsity_model']:.2%}" if "sparsity_model" in (m := r.metrics) else "",
        "perplexity [95%]": lambda r: with_interval(r.metrics, "perplexity", 2) or overflow(r),
        "ratio to dense [95%]": lambda r: with_interval(r.metrics, "perplexity_ratio", 4),
        "controls": lambda r: plain(r.metrics, "control_perplexity", 2),
        "file MB": lambda r: megabytes(r.metrics.get("disk_bytes")),
        "winner": lambda r: r.tags.get("winner", ""),
        "coherent": lambda r: r.tags.get("coherent", ""),
        "state": lambda r: r.state if r.state in ("failed", "missing") else "",
    }
    table = Table(box=box.MARKDOWN)
    used = [name for name, of in columns.items() if name == "" or any(of(row) for row in rows)]
    for name in used:
        table.add_column(name, justify="left" if name in ("model", "", "winner", "coherent", "state") else "right")
    for row in rows:
        table.add_row(*(columns[name](row) for name in used))
    return render(table)


def overflow(row: Any) -> str:
    """The word for a perplexity that a measured ticket does not have."""
    return str(row.tags.get("outcome", "")) if row.state in ("made", "found") else ""


def parts_table(plan: Any) -> str:
    """What a study would do, by its parts."""
    table = Table(box=box.MARKDOWN)
    for name in ("part", "model", "", "target", "sparsity"):
        table.add_column(name)
    for part in plan.parts:
        about = f"to {part.width:.2%} between those of the grid" if part.width else f"{part.spec.sparsity:.4%}"
        title = f"search: {part.title}" if part.width else part.title
        table.add_row(part.part, part.base, title, part.spec.target, "" if part.title == "dense" else about)
    return render(table)


def column(name: str) -> Callable[[Row], str]:
    return lambda row: row.params.get(name, "")


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


def doctor_table(checks: Sequence[Any]) -> str:
    table = Table(box=box.MARKDOWN)
    for name in ("check", "", "found"):
        table.add_column(name)
    for check in checks:
        table.add_row(check.name, "ok" if check.fine else "FAIL", check.found)
    return render(table)
