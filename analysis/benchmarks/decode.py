"""The part `decode` compares one token's way through pruned weights with its way through dense ones, in these parts: a
layer of Mistral 7B, and of SmolLM2-135M; whole models; and the layers of llama.cpp."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

PARTS = ("mistral-layer", "smollm2-layer", "smollm2-model", "mistral-model", "llama")
KINDS = ("none", "int8", "fp8")  # the values of quantize=


def bench_decode(
    folder: Path,
    rounds: int,
    layers: int,
    only: Sequence[str],
    sparsity: Sequence[float],
    quantize: Sequence[str],
    llama: str,
    copies: int | None,
) -> dict[str, Any]:
    """Returns the figures of each part. `copies`: of a layer, if not as many as its model has."""
    import torch

    from benchmarks.decode_layers import LAYERS, SPARSITIES, bench_layer
    from benchmarks.decode_llama import bench_llama
    from benchmarks.decode_models import bench_mistral, bench_smollm2
    from benchmarks.turns import Conditions
    from lottery.errors import InputError
    from lottery.kernels.product import pick_kernel
    from lottery.models.devices import hardware
    from lottery.progress import quiet_libraries
    from lottery.runtime.load import product_threads

    quiet_libraries()
    try:
        given = Conditions(rounds, product_threads(), pick_kernel(), quantize or KINDS)
    except InputError as e:
        raise click.UsageError(str(e)) from e
    click.echo(f"decode: {hardware('cpu')}, kernel {given.kernel}; medians of {rounds} turns [quartiles]")
    found: dict[str, Any] = {"hardware": hardware("cpu"), "kernel": given.kernel}
    for part in only or PARTS:
        name, _, whole = part.partition("-")
        with torch.inference_mode():
            if whole == "layer":
                layer = LAYERS[name]
                found[part] = bench_layer(layer._replace(copies=copies or layer.copies), given, sparsity or SPARSITIES)
            elif part == "mistral-model":
                found[part] = bench_mistral(folder, layers, given)
            elif part == "smollm2-model":
                found[part] = bench_smollm2(folder, given)
            else:
                found[part] = bench_llama(LAYERS["mistral"], llama, folder, given)
    return found
