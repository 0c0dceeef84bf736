"""Checks, unpacks and dequantizes one matrix as a ticket stores it.

Legend: O rows, I columns, B = ceil(I/8), K stored values.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from lottery.kernels import bitmask, quantizing
from lottery.models.headers import TensorInfo
from lottery.ticket.packing import from_bits


@dataclass
class StoredMatrix:
    """A matrix [O, I] as it is stored: a bitmask and the survivors, or all values if there is no mask.

    `values_K` holds bits of `dtype`. If the matrix is `quantized`, it holds uint8 codes, and `scale_O` a scale per row.
    Without a mask, `values_K` has the shape of the model's tensor; that of a Conv1D is [I, O].
    """

    rows: int
    columns: int
    dtype: str
    transposed: bool
    quantized: str | None
    values_K: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    bitmask_OB: np.ndarray | None = None
    scale_O: np.ndarray | None = None

    def fits(self, kept: int | None, info: TensorInfo) -> bool:
        """Returns whether the parts belong together. `kept` is the number of survivors that the record states."""
        if self.quantized:
            if self.scale_O is None or self.scale_O.shape != (self.rows,):
                return False
            if not np.isfinite(self.scale_O).all() or (self.scale_O < 0).any():
                return False
            # These codes are never written: -128, and float8's NaN.
            wrong = self.values_K == 0x80 if self.quantized == "int8" else (self.values_K & 0x7F) == 0x7F
            if wrong.any():
                return False
        return self.values_K.shape == (info.shape if self.bitmask_OB is None else (kept,))

    def mask_fits(self, kept: int) -> bool:
        """Returns whether the bitmask has this matrix's shape, `kept` survivors, and 0 beyond the last column."""
        mask_OB = self.bitmask_OB
        if mask_OB is None or mask_OB.shape != (self.rows, -(-self.columns // 8)):
            return False
        beyond = self.columns % 8 and (mask_OB[:, -1] >> (self.columns % 8)).any()
        return not beyond and int(bitmask.survivors_per_row(mask_OB).sum()) == kept

    @property
    def flat(self) -> np.ndarray:
        """Returns `values_K` in one dimension, in the order of [O, I]."""
        if self.bitmask_OB is None and self.transposed:
            return np.ascontiguousarray(self.values_K.T).reshape(-1)
        return self.values_K.reshape(-1)

    def unpack(self) -> "StoredMatrix":
        """Returns the same matrix without a mask: the removed weights are zeros among the values."""
        if self.bitmask_OB is None:
            return self
        values_OI = bitmask.unpack(self.bitmask_OB, self.values_K, self.columns)
        return replace(self, values_K=values_OI, bitmask_OB=None, transposed=False)

    @property
    def values_dtype(self) -> str:
        """Returns safetensors' name of the type of `values_K`."""
        return quantizing.QUANTIZED_DTYPES[self.quantized][0] if self.quantized else self.dtype

    def dequantize(self, info: TensorInfo, dtype: str = "F32") -> torch.Tensor:
        """Returns the weights that the 8-bit codes stand for, in the shape of the model's tensor.

        They are computed in float32, and rounded if `dtype` is BF16. The result for a Conv1D is a view.
        """
        assert self.quantized and self.scale_O is not None
        out_OI = np.empty((self.rows, self.columns), np.uint16 if dtype == "BF16" else np.uint32)
        start_O = quantizing.row_offsets(self.bitmask_OB) if self.bitmask_OB is not None else None
        step_O = quantizing.step_sizes(self.scale_O, self.quantized)
        quantizing.unpack_weights(self.bitmask_OB, start_O, self.flat, self.values_dtype, step_O, out_OI)
        return from_bits(out_OI, TensorInfo("", dtype, info.shape), self.transposed)
