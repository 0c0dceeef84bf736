"""Compares how fast whole models decode: the dense base, and tickets of it whose weights stay packed, or are multiplied
as they are packed (runtime=sparse)."""

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.bandwidth import Reader
from benchmarks.checkpoint import find_or_make_checkpoint
from benchmarks.decode_layers import TITLES
from benchmarks.model import find_or_make_ticket
from benchmarks.turns import BLOCK_BYTES, Conditions, Turns, show, stopwatch, take_turns
from lottery.files.home import home
from lottery.models import devices
from lottery.models.checkpoint import Base
from lottery.models.sources import open_base
from lottery.runtime.decoding import Decoder
from lottery.runtime.load import load_model
from lottery.ticket.stored import StoredTicket

SPARSITY = 0.5
PROMPT = 64  # tokens
CHUNK = 2  # tokens that are timed together


def smollm2_folder() -> Path:
    """Returns where analysis/real_models.py makes the model, by LOTTERY_REAL_MODELS or in LOTTERY_HOME."""
    return Path(os.environ.get("LOTTERY_REAL_MODELS") or home() / "real-models") / "smollm2-135m-instruct"


def bench_smollm2(folder: Path, given: Conditions) -> dict[str, Any] | None:
    model = smollm2_folder()
    if not (model / "config.json").is_file():
        click.echo(f"decode: no SmolLM2-135M in {model}: python analysis/real_models.py makes it; it is left out")
        return None
    return bench_model(open_base(str(model)), "SmolLM2-135M", ["float32"], folder / "smollm2", given)


def bench_mistral(folder: Path, layers: int, given: Conditions) -> dict[str, Any]:
    folder = folder / f"mistral-{layers}"
    base = open_base(str(find_or_make_checkpoint(folder / "hub", layers)))
    return bench_model(base, f"{layers} layers of Mistral 7B", [], folder, given)


def bench_model(base: Base, title: str, other_types: Sequence[str], folder: Path, given: Conditions) -> dict[str, Any]:
    """Prints a table of one model, and returns its figures: a row -> a column. `other_types`: in which the dense model
    is timed, too."""
    folder.mkdir(exist_ok=True)
    dtype = devices.pick_compute_dtype("auto", base.dtype, "cpu")
    reader = Reader(BLOCK_BYTES, given.threads)
    models = {
        f"dense {t}": load_model(base, list(base.tensors), t, "cpu") for t in dict.fromkeys([dtype, *other_types])
    }
    click.echo(
        f"decode: {title}, {SPARSITY:.0%} of the weights in its layers pruned: tokens per second at batch 1, {CHUNK} a turn"
    )
    click.echo("  | weights | tokens/s | times as fast as dense | of the floor |")
    click.echo("  | --- |" + " --- |" * 3)
    rows: dict[str, Any] = {}
    for kind in given.kinds:
        stored = StoredTicket(find_or_make_ticket(base, folder, kind, SPARSITY), None)
        pruned = {
            f"{TITLES[kind]}, {runtime}": load_model(stored, list(stored.tensors), dtype, "cpu", runtime)
            for runtime in ("packed", "sparse")
        }
        for name, row in compare(models | pruned, reader, given.rounds).items():
            if name not in rows:
                rows[name] = row
                click.echo(
                    f"  | {name} | {show(row['tokens_per_s'])} | {show(row.get('dense'))} | {show(row['of_floor'])} |"
                )
        del pruned
        gc.collect()
    return rows


def compare(models: dict[str, Any], reader: Reader, rounds: int) -> dict[str, dict[str, Any]]:
    """Returns the row of each model. The peer is the faster of the dense ones."""
    turns = take_turns({name: decoding(model) for name, model in models.items()}, reader, rounds)
    peer = min((name for name in models if name.startswith("dense")), key=turns.milliseconds)
    return {name: figures(turns, name, peer, bytes_read(model)) for name, model in models.items()}


def figures(turns: Turns, name: str, peer: str, nbytes: int) -> dict[str, Any]:
    row = {"tokens_per_s": turns.per_second(name), "of_floor": turns.of_floor(name, nbytes)}
    return row if name == peer else row | {"dense": turns.ratio(peer, name)}


def bytes_read(model: Any) -> int:
    """Returns the bytes of weights that one token reads: all, but not the workspace of packed layers, which `packed` writes
    and reads besides, and not embeddings that are not the head."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    return sum(held.values()) - (0 if getattr(head, "weight", None) is table else table.nbytes)


def decoding(model: Any) -> Any:
    """Returns a way that decodes some tokens after a prompt. One token before them is not timed."""
    decoder = Decoder(model, 0)
    token_11 = decoder.begin(torch.arange(3, 3 + PROMPT)[None])

    def decode(tokens: int) -> None:
        nonlocal token_11
        for _ in range(tokens):
            token_11 = decoder.next(token_11)

    return stopwatch(lambda: decode(CHUNK), CHUNK, before=lambda: decode(1))
