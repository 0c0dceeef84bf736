"""Measures how fast and how small things are, each against a peer or a floor of the same run: python analysis/bench.py

files     a Mistral-7B-shaped bfloat16 checkpoint of random weights (a slice of 4.9 GB; --full: all 7.24 B parameters), pruned
          to 50% in all targets, against cp and fsync of the same files; then the ticket loaded, against the dense files
kernels   one 14336 x 4096 bfloat16 matrix at 50%, against torch's own pruning, a k-th value and a plain copy
packed    one linear layer, 14336 x 4096 at 50%, whose weights stay packed in memory, against a dense layer in the type that
          is fastest here: for one token (decode) and for 512 (prefill)
model     the same checkpoint (one layer of it; --full: all 32), dense, pruned to 50%, and in 8 bits, in both runtimes: bytes
          of the weights, peak memory, prefill, and decoding against the dense model and against what memory allows; on the
          GPU if there is one
product   on a GPU, the product of one token with packed weights, against cuBLAS: the matrices of Mistral 7B at 0, 50, 70 and
          90%, in 16 bits, int8 and fp8
decode    one token through a layer of Mistral 7B and of SmolLM2-135M, at several sparsities and in 16 and 8 bits, against
          torch's dense product, against the sparse kernel's own loop over a dense matrix, and against what memory allows; then
          whole models (four layers of Mistral 7B; SmolLM2-135M, where analysis/real_models.py has made it), and llama.cpp,
          where llama-cpp-python is installed. LOTTERY_KERNEL forces a kernel
evaluate  the embedded model's perplexity, against a bare forward loop over the same windows
calibrate SmolLM2-135M (analysis/real_models.py makes it): wanda's pass of 8 samples of 1,024 tokens against a plain forward
          pass of the whole model over the same tokens, and the solving of all matrices by each method; CPU seconds of one
          thread
hypothesis a training's step (data, mask, clipping, AdamW, curve) of a network of 0.2 million weights against torch's own
          forward and backward pass of it; CPU seconds of one thread; the bar is 1.20
study     `lottery study locate` on the embedded model with every measurement, against its tickets as so many main jobs, each
          a process of its own; six of them are timed, three before and three after the study (10 minutes)

The tables are for people; the last line of stdout is one JSON object. Each task of `files` runs in a process of its own: its
imports are done, its kernels compiled and its memory at hand before the clock starts, and what it writes is on the disk
(fsync) when the clock stops. Tickets are read past the page cache; dense files are mapped, as their library does. Peak memory
of `files` is the process's anonymous memory (RssAnon and RssShmem), sampled every 10 ms, imports included.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import click
import torch

from benchmarks.calibrate import bench_calibrate
from benchmarks.decode import KINDS, PARTS, bench_decode
from benchmarks.evaluate import bench_evaluate
from benchmarks.files import bench_files
from benchmarks.hypothesis import bench_hypothesis
from benchmarks.kernels import bench_kernels
from benchmarks.model import bench_model
from benchmarks.packed import bench_packed
from benchmarks.product import bench_product
from benchmarks.study import bench_study
from benchmarks.timing import free_memory, touch_memory
from benchmarks.work import WORK

SLICE_LAYERS, FULL_LAYERS = 10, 32


@click.command()
@click.option(
    "--full", is_flag=True, help="Use all 32 layers: 14.5 GB of files, as much again for a copy, and as much memory."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="The folder for the files, which are kept.  [default: a temporary one]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="How many times each task is measured.  [default: 3; calibrate: 5; hypothesis: 15; decode: 21]",
)
@click.option("--layers", default=4, show_default=True, help="decode: the layers of the model in Mistral 7B's shape.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="decode: this part alone; may be repeated.")
@click.option(
    "--sparsity",
    multiple=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="decode: layers with this share of zeros alone; may be repeated.",
)
@click.option(
    "--quantize", multiple=True, type=click.Choice(KINDS), help="decode: such weights alone; may be repeated."
)
@click.option(
    "--llama",
    default=sys.executable,
    envvar="LOTTERY_LLAMA",
    help="decode: a Python that has llama-cpp-python and gguf.  [default: this one]",
)
@click.option("--copies", type=click.IntRange(1), hidden=True)  # of a layer; with one, a small layer lies in the cache
@click.option("--work", nargs=3, hidden=True)
@click.argument(
    "parts",
    nargs=-1,
    type=click.Choice(
        ["files", "kernels", "packed", "model", "product", "decode", "evaluate", "calibrate", "hypothesis", "study"]
    ),
)
def main(
    full: bool,
    folder: Path | None,
    rounds: int | None,
    work: tuple[str, str, str] | None,
    parts: tuple[str, ...],
    **decode: Any,
) -> None:
    if work:
        fresh = touch_memory(int(0.75 * free_memory()))
        click.echo(json.dumps(WORK[work[0]](Path(work[1]), Path(work[2])) | {"fresh_memory_gb_s": fresh}))
        return
    found: dict[str, Any] = {}
    for part in parts or ("kernels", "packed", "evaluate", "files"):
        if part == "kernels":
            found[part] = bench_kernels()
        elif part == "packed":
            found[part] = bench_packed()
        elif part == "product":
            if not torch.cuda.is_available():
                raise click.UsageError(
                    "product: torch finds no GPU; run this on a machine with one (nvidia-smi lists it)"
                )
            found[part] = bench_product()
        elif part == "evaluate":
            found[part] = bench_evaluate()
        elif part == "calibrate":
            found[part] = bench_calibrate(rounds or 5)
        elif part == "hypothesis":
            found[part] = bench_hypothesis(rounds or 15)
        elif part == "study":
            found[part] = bench_study()
        else:
            with tempfile.TemporaryDirectory() as temporary:
                where = (folder or Path(temporary)).absolute()
                where.mkdir(parents=True, exist_ok=True)
                if part == "decode":
                    found[part] = bench_decode(where, rounds or 21, **decode)
                elif part == "model":
                    found[part] = bench_model(where, FULL_LAYERS if full else 1)
                else:
                    found[part] = bench_files(where, FULL_LAYERS if full else SLICE_LAYERS, rounds or 3)
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
