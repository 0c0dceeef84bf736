"""A source's tensors one after the other, in bounded memory, checked for NaN and infinity."""

from collections.abc import Callable, Generator, Sequence

import torch

from lottery.errors import InputError
from lottery.files import disk
from lottery.kernels import select
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.tensors import FLOAT_BITS
from lottery.pruning.tensors import tensor_info


class Budget:
    """Bytes of tensors in memory, by the largest: read ahead, and between selection and disk.

    Of a ticket's tensor, and of a matrix that is turned around, another form is in memory too.
    """

    def __init__(self, source: Source, places: Sequence[Place]) -> None:
        largest = max(tensor_info(source, p).nbytes for p in places)
        twice = source.ticket is not None or any(p.transposed for p in places)
        self.ahead = largest if twice else disk.in_flight(largest)
        self.unfinished = disk.in_flight(largest) - (largest if twice else 0)


def stream_of(
    source: Source, places: Sequence[Place], ahead: int
) -> Generator[tuple[torch.Tensor, Callable[[], None]]]:
    """Each place's tensor in turn, and how to give its memory back."""
    return source.stream([place.copy_of or place.name for place in places], ahead)


def check_finite(name: str, dtype: str, tensor: torch.Tensor) -> int:
    """How many zeros the tensor holds. Raises InputError, naming it, where it holds NaN or infinity."""
    if dtype not in FLOAT_BITS:
        zeros, broken = 0, int(not tensor.double().isfinite().all())
    else:
        integer, infinity = FLOAT_BITS[dtype]
        bits = tensor.view(integer).numpy()
        zeros, broken = select.count_zeros_and_nonfinite(bits if tensor.is_contiguous() else bits.T, infinity)
    if broken:
        raise InputError(f"model: its tensor {name!r} holds NaN or infinite weights; take another checkpoint")
    return zeros
