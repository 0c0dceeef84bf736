"""The part `kernels` compares selecting and packing one matrix with torch's own pruning, a k-th value and a plain
copy."""

from typing import Any

import click
import torch

from benchmarks.timing import best, print_ratio


def bench_kernels() -> dict[str, Any]:
    import numpy as np
    from torch.nn.utils import prune as torch_prune

    from lottery.kernels import bitmask, parallel, select

    weight_OI = torch.randn(14336, 4096, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    bits_OI = weight_OI.view(torch.uint16).numpy()
    k = weight_OI.numel() // 2

    def torch_pruning() -> None:
        module = torch.nn.Linear(1, 1, bias=False)
        module.weight = torch.nn.Parameter(weight_OI)
        torch_prune.l1_unstructured(module, "weight", 0.5)

    select.compile_kernels(bits_OI.dtype)
    mask_OB = select.select(bits_OI, k)
    values_K = np.concatenate(bitmask.compact(bits_OI.copy(), mask_OB))
    spent_OI = bits_OI.copy()
    times = {
        "a plain copy (floor)": best(lambda: np.copyto(spent_OI, bits_OI)),
        "scan for zeros and NaN": best(lambda: select.count_zeros_and_nonfinite(bits_OI, 0x7F80)),
        "select: exact threshold and bitmask": best(lambda: select.select(bits_OI, k)),
        "select, random": best(lambda: select.select(bits_OI, k, 1)),
        "select, 2:4": best(lambda: select.select_groups(bits_OI, 2, 4)),
        "select, 4:8": best(lambda: select.select_groups(bits_OI, 4, 8)),
        "compact: the survivors": best(lambda: bitmask.compact(spent_OI, mask_OB)),
        "unpack": best(lambda: bitmask.unpack(mask_OB, values_K, 4096)),
        "numpy bincount (peer of the histogram)": best(lambda: np.bincount(bits_OI.ravel() & 0x7FFF), 2),
        "torch kthvalue, float32 (peer)": best(lambda: weight_OI.float().abs().flatten().kthvalue(k), 3),
        "torch l1_unstructured (peer of select)": best(torch_pruning, 3),
    }
    floor = times["a plain copy (floor)"]
    click.echo(
        f"kernels: one 14336 x 4096 bfloat16 matrix at 50%, {parallel.THREADS} threads, best of five (torch's: of three)"
    )
    for name, seconds in times.items():
        print_ratio(name, seconds, floor, "copy")
    faster = times["torch l1_unstructured (peer of select)"] / times["select: exact threshold and bitmask"]
    click.echo(f"  selection is {faster:.0f} times faster than torch's")
    return {"seconds": times, "select_faster_than_torch": faster}
