"""Reads a source's tensors one after the other, in bounded memory, and checks them for NaN and infinity."""

from collections.abc import Callable, Generator, Sequence

import torch

from lottery.errors import InputError
from lottery.files import disk
from lottery.kernels import select
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.tensors import FLOAT_BITS
from lottery.pruning.tensors import tensor_info

LITTLE = 2**26  # bytes


class Budget:
    """How many bytes of tensors may be in memory, measured by the largest tensor.

    `ahead` is for tensors that are read ahead, `unfinished` for those between selection and disk. A ticket's tensor and
    a transposed matrix are in memory in a second form too. With a calibrated method a block of the model, read from the
    same files, and its statistics need the memory: nothing is read ahead then, and little is left unfinished.
    """

    def __init__(self, source: Source, places: Sequence[Place], calibrated: bool = False) -> None:
        if calibrated:
            self.ahead, self.unfinished = 0, LITTLE
            return
        largest = max(tensor_info(source, p).nbytes for p in places)
        twice = source.ticket is not None or any(p.transposed for p in places)
        self.ahead = largest if twice else disk.in_flight(largest)
        self.unfinished = disk.in_flight(largest) - (largest if twice else 0)


def stream_of(
    source: Source, places: Sequence[Place], ahead: int
) -> Generator[tuple[torch.Tensor, Callable[[], None]]]:
    """Yields the tensor of each place, with a function that gives its memory back."""
    return source.stream([place.copy_of or place.name for place in places], ahead)


def check_finite(name: str, dtype: str, tensor: torch.Tensor) -> int:
    """Returns how many zeros the tensor holds. Raises InputError that names the tensor if it holds NaN or infinity."""
    if dtype not in FLOAT_BITS:
        zeros, broken = 0, int(not tensor.double().isfinite().all())
    else:
        integer, infinity = FLOAT_BITS[dtype]
        bits = tensor.view(integer).numpy()
        zeros, broken = select.count_zeros_and_nonfinite(bits if tensor.is_contiguous() else bits.T, infinity)
    if broken:
        raise InputError(f"model: its tensor {name!r} holds NaN or infinite weights; take another checkpoint")
    return zeros
