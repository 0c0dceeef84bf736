"""Renders plans, exports, imports and the checks of the machine as text for the console."""

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from lottery.measuring.console import megabytes, render
from lottery.models.targets import format_ranges
from lottery.ticket.record import layer_shares, shares_line


def plan_table(plan: dict[str, Any]) -> str:
    """Returns the plan as a table. The same matrix of several layers has one row; `--json` lists every tensor."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for name, entry in plan["tensors"].items():
        if "requested" in entry:
            pattern = re.sub(r"\.\d+\.", ".*.", name)  # all layers, and all experts of a layer
            group = (pattern, entry["role"], " x ".join(map(str, entry["shape"])), entry["dtype"])
            groups.setdefault(group, []).append(entry)
    table = Table(box=box.MARKDOWN)
    for column in ("tensor", "role", "shape", "type", "layers", "removed", "of", "MB after"):
        table.add_column(column, justify="right" if column in ("removed", "of", "MB after") else "left")
    for key, entries in groups.items():
        numel = sum(math.prod(e["shape"]) for e in entries)
        removed = numel - sum(e["kept"] for e in entries)
        layers = format_ranges([e["layer"] for e in entries if "layer" in e])
        table.add_row(*key, layers, f"{removed:,}", f"{numel:,}", megabytes(sum(e["bytes"] for e in entries)))
    quantized = sum("quantized" in e for e in plan["tensors"].values())
    untouched = sum("requested" not in e and "quantized" not in e for e in plan["tensors"].values())
    shares = ", ".join(f"{role} {share:.1%}" for role, share in plan["shares"].items())
    if plan["tied"]:
        shares += " (the head is the embedding matrix itself)"
    dropped = [f"left out, as each is a buffer or a copy: {', '.join(plan['dropped'])}"] if plan["dropped"] else []
    layers_lose = layer_shares(plan["tensors"].values())
    uneven = len({f"{share:.3f}" for share in layers_lose.values()}) > 1
    no_id = f"(its id is not known yet: {plan.get('no_ticket')})"
    return render(
        table,
        *plan["notes"],
        f"{plan['base']}: {plan['parameters']:,} parameters: {shares}",
        f"ticket {plan['ticket'] or no_id}: {plan['target']} of {plan['base']} to {plan['sparsity']:.2%}; "
        f"{f'{quantized} tensors are stored in 8 bits; ' if quantized else ''}{untouched} tensors stay as they are",
        f"zeros: {plan['sparsity_target']:.2%} of the target, {plan['sparsity_prunable']:.2%} of the prunable, "
        f"{plan['sparsity_model']:.2%} of all weights",
        *([f"allocation={plan['allocation']}: the layers lose {shares_line(layers_lose)}"] if uneven else []),
        f"on disk: {megabytes(plan['disk_bytes_before'])} MB before, {megabytes(plan['disk_bytes_after'])} MB after",
        *dropped,
        *(calibration_lines(plan) if "calibration" in plan else []),
    )


def calibration_lines(plan: dict[str, Any]) -> list[str]:
    """Returns what a method that looks at data takes: the samples, the memory, the time."""
    text, parts = plan["calibration"], plan["calibration_bytes"]
    named = {
        "gram": "Gram matrices",
        "weights": "weights of a block",
        "hidden_states": "hidden states",
        "solving": "buffers",
        "libraries": "libraries",
    }
    shown = ", ".join(f"{name} {megabytes(parts[key])}" for key, name in named.items() if parts[key])
    written = "; the model writes them first, which takes more" if text["text"] == "self" else ""
    return [
        f"calibration: {text['nsamples']} samples of {text['seqlen']:,} tokens of {text['text']}{written}; "
        f"a block sees what the {text['propagate']} blocks before it give",
        f"memory: at most about {megabytes(plan['calibration_peak_bytes'])} MB: {shown}",
        f"time here: {about(plan['calibrate_s'])} for the samples in the blocks, {about(plan['prune_s'])} for the rest "
        f"(extrapolated from products that were timed now)",
    ]


def about(seconds: float) -> str:
    """Returns a rough time in words."""
    for most, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (math.inf, 3600, "h")):
        if seconds < most:
            return f"about {max(1, round(seconds / unit))} {name}"
    raise AssertionError("some time is longer than any")


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
            f"{found['quantized']} matrices are in 8 bits; {found['rounding_zeros']:,} more weights became zero by rounding"
        )
    return render(*lines, *found["notes"], f"folder: {found['path']}", f"to load it: {found['load']}")


def import_text(found: dict[str, Any]) -> str:
    types = ", ".join(f"{name} {of['weights']:,}" for name, of in found["types"].items())
    return render(
        f"{found['model_type']}, {found['parameters']:,} parameters, {megabytes(found['disk_bytes'])} MB, "
        f"licence: {found.get('license', 'not stated')}",
        f"weights of each type in the file: {types}",
        f"the weights were {found['weights']}",
        *found["notes"],
        f"folder: {found['path']}",
        f"to prune it: lottery prune --model {shlex.quote(found['path'])}",
    )


def doctor_table(checks: Sequence[Any]) -> str:
    table = Table(box=box.MARKDOWN)
    for name in ("check", "", "found"):
        table.add_column(name)
    for check in checks:
        table.add_row(check.name, "ok" if check.fine else "FAIL", check.found)
    return render(table)
