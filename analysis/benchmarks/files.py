"""The part `files` compares pruning a checkpoint with cp and fsync of its files, and loading the ticket with loading
the dense files."""

import os
import shutil
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click

from benchmarks.checkpoint import find_or_make_checkpoint, weight_files
from benchmarks.timing import HUGE_PAGE, print_ratio
from benchmarks.work import run_work


def bench_files(folder: Path, layers: int, rounds: int) -> dict[str, Any]:
    times, facts = times_and_facts(folder, layers, rounds)
    s = {name: median(values) for name, values in times.items()}
    print_files(s, facts, layers, rounds)
    ratios = [a / b for a, b in zip(times["command_cold"], times["copy_cold"], strict=True)]
    print_command(s, ratios, facts)
    return {
        "layers": layers,
        "seconds": times,
        "command_to_copy": ratios,
        "prune_to_copy": s["prune_cold"] / s["copy_cold"],
        "load_cold_to_dense": s["load_ticket_cold"] / s["load_dense_cold"],
        "load_warm_to_dense": s["load_ticket_warm"] / s["load_dense_warm"],
        **{name: value for name, value in facts["prune"].items() if name != "seconds"},
        "load_peak_anon_mb": facts["load_ticket"]["peak_anon_mb"],
    }


def times_and_facts(
    folder: Path, layers: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Returns the seconds of each task, one value per round, and what the last process of each task measured."""
    ticket, copy = folder / "ticket", folder / "copy"
    model = find_or_make_checkpoint(folder / "hub", layers)
    times: dict[str, list[float]] = {}
    facts: dict[str, dict[str, float]] = {}

    def measure(kind: str, name: str, other: Path) -> None:
        click.echo(f"{name} ({kind})", err=True)
        facts[name] = run_work(name, model, other)
        times.setdefault(f"{name}_{kind}", []).append(facts[name]["seconds"])

    run_work("command", model, ticket)  # once unmeasured: MLflow's tables are made, transformers has seen the model
    for _ in range(rounds):  # in turns: a machine that slows down slows both
        drop_files(model)
        measure("cold", "copy", copy)
        shutil.rmtree(copy)
        shutil.rmtree(ticket, ignore_errors=True)
        drop_files(model)
        measure("cold", "command", ticket)
        shutil.rmtree(ticket)
        drop_files(model)
        measure("cold", "prune", ticket)
    for _ in range(rounds):
        drop_caches(model, ticket)
        measure("cold", "load_dense", ticket)
        drop_caches(model, ticket)
        measure("cold", "load_ticket", ticket)
        fill_page_cache(weight_files(model))
        measure("warm", "load_dense", ticket)
        fill_page_cache(weight_files(ticket))
        measure("warm", "load_ticket", ticket)
    drop_caches(model)
    measure("cold", "hash", ticket)
    return times, facts


def print_files(s: dict[str, float], facts: dict[str, dict[str, float]], layers: int, rounds: int) -> None:
    """Prints the part's table. `s`: the median seconds of each task."""
    fact = facts["prune"]
    gb = fact["base_bytes"] / 1e9
    click.echo(f"files: {gb:.2f} GB of bfloat16, {layers} layers of Mistral 7B, target all to 50%, medians of {rounds}")
    print_ratio("cp and fsync, cold", s["copy_cold"], s["copy_cold"], "cp")
    print_ratio("prune, pack, fsync, cold", s["prune_cold"], s["copy_cold"], "cp")
    print_ratio("(a local folder, once: hash of its files, cold)", s["hash_cold"], s["copy_cold"], "cp")
    for kind in ("cold", "warm"):
        dense = s[f"load_dense_{kind}"]
        print_ratio(f"load the dense files, {kind}", dense, dense, "dense")
        print_ratio(f"load the ticket, hashes checked, {kind}", s[f"load_ticket_{kind}"], dense, "dense")
    click.echo(
        f"  peak anonymous memory of pruning {fact['peak_anon_mb']:,.0f} MB (allowed: twice the largest tensor + 500 MB = "
        f"{fact['peak_anon_allowed_mb']:,.0f} MB); of loading {facts['load_ticket']['peak_anon_mb']:,.0f} MB, the dense "
        f"files (mapped) {facts['load_dense']['peak_anon_mb']:,.0f} MB"
    )
    click.echo(
        f"  ticket {fact['ticket_bytes'] / 1e9:.3f} GB, {fact['ticket_bytes'] / fact['base_bytes']:.4f} of the base's; "
        f"targeted weights {fact['packed_ratio']:.4f} of their 16 bits, {fact['sparsity_target']:.4%} zeros"
    )


def print_command(s: dict[str, float], ratios: list[float], facts: dict[str, dict[str, float]]) -> None:
    """Prints how the whole command compares with cp. `ratios`: one for each round."""
    low, middle, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
    cpu_per_gb = facts["command"]["cpu_s"] / facts["prune"]["base_bytes"] * 1e9
    click.echo(
        f"  the whole command, imports and MLflow's run included, its libraries in the page cache: {s['command_cold']:.2f} "
        f"s, {middle:.3f} x cp [quartiles {low:.3f}, {high:.3f}], {cpu_per_gb:.2f} processor seconds per GB"
    )


def drop_caches(*folders: Path) -> None:
    """Empties the page cache, so that the disk is read again: by the kernel's switch if it may be used, else file by
    file."""
    os.sync()
    switch = Path("/proc/sys/vm/drop_caches")
    if os.access(switch, os.W_OK):
        switch.write_text("3")
    else:
        drop_files(*folders)


def drop_files(*folders: Path) -> None:
    """Takes the weight files out of the page cache, and leaves there the libraries that a command imports."""
    os.sync()
    for path in (p for folder in folders for p in weight_files(folder)):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def fill_page_cache(files: list[Path]) -> None:
    for path in files:
        with open(path, "rb", buffering=0) as f:
            block = bytearray(HUGE_PAGE)
            while f.readinto(block):
                pass
