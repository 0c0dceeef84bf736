"""Compares the products of one layer with those of llama.cpp, whose time holds the rest of the layer too: attention over
a few tokens, and norms."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.bandwidth import Reader
from benchmarks.decode_layers import TITLES, Layer, figures, make_weights, stored_products, timed, torch_products
from benchmarks.turns import BLOCK_BYTES, Conditions, Way, show, take_turns

WORKER = Path(__file__).with_name("llama_worker.py")
TYPES = {"Q8_0": 34 / 32, "F16": 2.0}  # bytes of a weight
SPARSITY = 0.5
CHUNK = 3  # tokens that are timed together
BLOCKS = 4  # layers of llama.cpp's model
WAY_OUT = "pip install llama-cpp-python gguf (it compiles), or --llama PYTHON, an interpreter that has them"


def has_llama(python: str) -> bool:
    """Returns whether an interpreter has the packages that the worker needs."""
    done = subprocess.run([python, "-c", "import llama_cpp, gguf, numpy"], capture_output=True)
    return done.returncode == 0


@contextmanager
def worker(python: str, folder: Path, layer: Layer, threads: int) -> Iterator[tuple[str, dict[str, Way]]]:
    """Yields llama.cpp's line about itself and its machine, and a way for each type of weights."""
    hidden, ffn = layer.shapes[3][0]
    arguments = [str(number) for number in (hidden, layer.shapes[0][1][0], ffn, BLOCKS, threads)]
    process = subprocess.Popen(
        [python, str(WORKER), str(folder), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    stdin, stdout = process.stdin, process.stdout

    def way(kind: str) -> Way:
        def decode() -> float:
            stdin.write(f"{kind} {CHUNK}\n")
            stdin.flush()
            return float(stdout.readline()) / BLOCKS

        return decode

    try:
        yield stdout.readline().strip(), {kind: way(kind) for kind in TYPES}
    finally:
        stdin.close()
        process.wait()


def bench_llama(layer: Layer, python: str, folder: Path, given: Conditions) -> dict[str, Any] | None:
    """Prints a table of llama.cpp's layer and this project's products, and returns its figures by the names of its
    rows."""
    if not has_llama(python):
        click.echo(f"decode: llama.cpp is left out: {WAY_OUT}")
        return None
    weights, reader = make_weights(layer), Reader(BLOCK_BYTES, given.threads)
    numel = sum(weight_OI.numel() for group in weights for weight_OI in group) // layer.copies
    products = torch_products(weights)
    products |= {f"{kind} pruned": stored_products(weights, kind, SPARSITY, given) for kind in given.kinds}
    nbytes = {name: way.nbytes / layer.copies for name, way in products.items()}
    with worker(python, folder, layer, given.threads) as (system, theirs):
        ways = {name: timed(name, way, layer.copies) for name, way in products.items()} | theirs
        turns = take_turns(ways, reader, given.rounds)
    rows = figures(turns, nbytes | {kind: numel * size for kind, size in TYPES.items()})
    click.echo(
        f"decode: one token through the matrices of a layer of {layer.title}, and through llama.cpp's whole layer"
    )
    click.echo(f"  llama.cpp: {system}")
    click.echo("  | weights | ms | times as fast as torch | as llama.cpp's Q8_0 | as llama.cpp's F16 | of the floor |")
    click.echo("  | --- |" + " --- |" * 5)
    for name, row in rows.items():
        kind = name.partition(" ")[0]
        row |= {peer: turns.ratio(peer, name) for peer in TYPES if peer != name}
        title = (
            f"{TITLES[kind]}, {SPARSITY:.0%}" if kind in TITLES else f"{'' if name in products else 'llama.cpp '}{name}"
        )
        cells = [show(row.get(column)) for column in ("torch", *TYPES, "of_floor")]
        click.echo(f"  | {title} | {row['ms']:.3g} | {' | '.join(cells)} |")
    return {"system": system, "rows": rows}
