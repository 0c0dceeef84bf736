"""The product of two matrices, with the fastest library on each device."""

import numpy as np
import torch


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the product of two matrices. On a CPU numpy's library is faster than torch's for float32."""
    if a.is_cuda:
        return a @ b
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))
