"""Keeps the hidden states of all calibration samples: in memory, or in a file that is mapped.

Legend: N samples, T tokens, H width.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import torch

from lottery.errors import path_error
from lottery.files.home import home, make_folder
from lottery.models import devices
from lottery.progress import say

SHARE = 4  # they may take one such part of the free memory


def lies_in_file(nbytes: int) -> bool:
    """Returns whether hidden states of this size would take so much of the free memory that a file holds them."""
    return nbytes > devices.free_bytes("cpu") // SHARE


def new_hidden_states(shape_NTH: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Returns room for the hidden states, [N, T, H] on the CPU: a file where they would take much of the memory.

    The file has no name any more when it is used, so that nothing is left of it however the process ends. Raises
    MachineError where the disk has no room for it.
    """
    nbytes = math.prod(shape_NTH) * dtype.itemsize
    if not lies_in_file(nbytes):
        return torch.empty(*shape_NTH, dtype=dtype)
    folder = make_folder(home() / "unfinished", "LOTTERY_HOME")
    say(f"the hidden states of the calibration samples take {nbytes / 1e9:.1f} GB and lie in a file in {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder) as f:
            os.posix_fallocate(f.fileno(), 0, nbytes)
            mapped = mmap.mmap(f.fileno(), nbytes)
    except OSError as e:
        raise path_error(e, f"LOTTERY_HOME={folder}: {e.strerror}; make room, or give fewer nsamples") from e
    return torch.frombuffer(mapped, dtype=dtype).view(*shape_NTH)
