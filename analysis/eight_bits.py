"""Compares pruning in 16 bits, int8 and fp8.

    python analysis/eight_bits.py [--model builtin] [--dataset auto] [--control 3]

It makes a ticket of `all` for every quantize= and several sparsities, and measures each as loaded from disk, with
random controls. It then measures each again with runtime=packed, for the memory that its weights take and the speed
that this costs. It prints Markdown tables on stdout. A speed is a share of the dense model's speed in the same run, in
the same minute.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import click

if TYPE_CHECKING:
    from lottery.jobs.result import Ticket

SPARSITIES = (0, 0.3, 0.5, 0.7, 0.9)


@click.command()
@click.option("--model", default="builtin", show_default=True)
@click.option("--dataset", default="auto", show_default=True)
@click.option("--limit", default="none", show_default=True)
@click.option("--control", default=3, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("eight_bits"), show_default=True)
def main(model: str, dataset: str, limit: str, control: int, folder: Path) -> None:
    """Each ticket is kept in FOLDER, and is found there when the command is repeated."""
    from lottery.jobs.evaluate import evaluate
    from lottery.jobs.run import prune
    from lottery.measuring.console import format_interval, format_metric
    from lottery.progress import quiet_libraries

    quiet_libraries()
    head = (
        "ticket",
        "perplexity [95%]",
        "ratio to dense [95%]",
        "controls (least to greatest)",
        "rounded to 0",
        "file",
    )
    row(*head, "in memory", "decode")
    row(*["---"] * (len(head) + 2))
    packed_rows: list[tuple[str, ...]] = []  # they stand in a second table: packed int8 is w8a16, not w8a8
    for quantize in ("none", "int8", "fp8"):
        for sparsity in SPARSITIES:
            out = folder / f"{quantize}-{sparsity}"
            common = {"dataset": dataset, "limit": limit}
            made = prune(
                model=model, quantize=quantize, sparsity=sparsity, control=control if sparsity else 0,
                measure="perplexity,speed,memory", register="none", out=out, **common,
            )  # fmt: skip
            packed = evaluate(str(out), runtime="packed", measure="perplexity,speed,memory", **common)
            m, name = made.metrics, f"{quantize} {sparsity:.0%}"
            spread = f"{format_metric(m, 'control_perplexity_lo', 1)} to {format_metric(m, 'control_perplexity_hi', 1)}"
            row(
                name,
                format_interval(m, "perplexity", 2),
                format_interval(m, "perplexity_ratio", 4),
                spread if "control_perplexity_lo" in m else "",
                f"{int(m.get('rounding_zeros', 0)):,}",
                f"{m['disk_ratio']:.3f}",
                *lean(made),
            )
            packed_rows.append((name, format_metric(packed.metrics, "perplexity", 2), *lean(packed)))
    click.echo("\nruntime=packed:\n")
    row("ticket", "perplexity", "in memory", "decode")
    row(*["---"] * 4)
    for cells in packed_rows:
        row(*cells)


def lean(ticket: "Ticket") -> tuple[str, str]:
    """Returns the bytes of the weights in memory and the decoding speed, as shares of the dense model's."""
    speed = ticket.metrics["decode_tok_s"] / ticket.measurement.dense["decode_tok_s"]
    return f"{ticket.metrics['weights_ratio']:.3f}", f"{speed:.2f}"


def row(*cells: str) -> None:
    click.echo("| " + " | ".join(cells) + " |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
