"""The part `product` compares a GPU's product of one token with packed weights with cuBLAS: torch's dense 16-bit layer.

Both run as CUDA graphs, so that no time of Python counts, and both go round copies of the matrix that are larger than the
GPU's second-level cache together, so that the weights come from memory, as they do while a model decodes.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch

SHAPES = {"q, o": (4096, 4096), "k, v": (1024, 4096), "gate, up": (14336, 4096), "down": (4096, 14336)}  # of Mistral 7B
SPARSITIES = (0.0, 0.5, 0.7, 0.9)
FORMS = ("16 bits", "int8", "fp8")
REPEATS = 25
CALLS = 20  # of one graph, at least


def bench_product(
    device: str = "cuda", shapes: dict[str, tuple[int, int]] = SHAPES, repeats: int = REPEATS
) -> dict[str, Any]:
    """Returns, for each matrix, type and sparsity, the quartiles of the ratio of cuBLAS's time to the kernel's."""
    from lottery.kernels import cuda_product

    own = torch.bfloat16 if device == "cpu" or torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    stored = {"16 bits": own, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
    cache = 2**20 if device == "cpu" else torch.cuda.get_device_properties(0).L2_cache_size
    click.echo(
        f"product of one token: times as fast as torch's dense {str(own)[6:]} (median and quartiles of {repeats})"
    )
    found: dict[str, Any] = {}
    for name, (rows, columns) in shapes.items():
        x_TI = torch.randn(1, columns, device=device).to(own)
        weight = torch.randn(rows, columns, device=device).to(own)
        dense = timer(
            [partial(torch.nn.functional.linear, x_TI, w) for w in copies([weight], cache, first=True)], device
        )
        found[name] = {}
        for sparsity in SPARSITIES:
            mask = random_mask(rows, columns, sparsity, device)
            for form in FORMS:
                matrix = pack(rows, mask, stored[form], device)
                if device != "cpu" and not cuda_product.can_use_product(0, stored[form], matrix[0] is not None, own):
                    return {"error": "the Triton product does not work here"}
                packed = timer(
                    [partial(cuda_product.multiply, x_TI, m[0], m[1], m[2], m[3], None) for m in copies(matrix, cache)],
                    device,
                )
                ratios, seconds = [], []
                for _ in range(repeats):
                    seconds.append(packed())
                    ratios.append(dense() / seconds[-1])
                low, median, high = torch.tensor(ratios).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
                middle = sorted(seconds)[repeats // 2]
                moved = sum(t.nbytes for t in matrix if t is not None) / middle
                found[name][f"{form} {sparsity:.0%}"] = {
                    "ratio": [low, median, high], "seconds": middle, "bytes_per_second": moved
                }  # fmt: skip
                click.echo(
                    f"  {name:<9} {rows:>6} x {columns:<6} {form:<8} {sparsity:>4.0%}: {median:5.2f} [{low:.2f}, {high:.2f}]"
                    f"  {1e6 * middle:8.1f} us, {moved / 1e12:.2f} TB/s"
                )
    return found


def random_mask(
    rows: int, columns: int, sparsity: float, device: str
) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    """Returns bitmask_OB, start_OC and the number of survivors; at a sparsity of 0 a matrix has no mask."""
    import numpy as np

    from lottery.kernels import cuda, quantizing

    if not sparsity:
        return None, None, rows * columns
    lives_OI: np.ndarray = np.random.default_rng(0).random((rows, columns), np.float32) >= sparsity
    mask_OB = np.packbits(lives_OI, axis=1, bitorder="little")
    start_OC = torch.from_numpy(quantizing.chunk_offsets(mask_OB, cuda.CHUNK)).to(device)
    return torch.from_numpy(mask_OB).to(device), start_OC, int(lives_OI.sum())


def pack(rows: int, mask: Any, stored: torch.dtype, device: str) -> list[torch.Tensor | None]:
    """Returns bitmask_OB, start_OC, values_K and step_O of a matrix with that mask and random values."""
    bitmask_OB, start_OC, count = mask
    codes = torch.randint(0, 127, (count,), dtype=torch.uint8, device=device)
    eight = stored.itemsize == 1
    values_K = codes.view(stored) if eight else codes.to(stored)
    return [bitmask_OB, start_OC, values_K, torch.ones(rows, device=device) if eight else None]


def copies(parts: list[torch.Tensor | None], cache: int, first: bool = False) -> list[Any]:
    """Returns as many copies of the tensors as are larger than three caches, and at least two. `first`: of the first
    tensor alone, not as a list."""
    size = sum(t.nbytes for t in parts if t is not None)
    many = [[None if t is None else t.clone() for t in parts] for _ in range(max(2, -(-3 * cache // size)))]
    return [one[0] for one in many] if first else many


def timer(calls: list[Callable[[], Any]], device: str) -> Callable[[], float]:
    """Returns a function that makes the calls several times and returns the seconds of one call."""
    calls = calls * -(-CALLS // len(calls)) if device != "cpu" else calls[:1]
    if device == "cpu":

        def run() -> float:
            begin = time.perf_counter()
            calls[0]()
            return time.perf_counter() - begin

        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and lets cuBLAS take its memory, before the graph is recorded
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def replay() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / len(calls)

    replay()
    return replay
