"""Multiplies a few tokens by stored weights, straight from bitmask and survivors, on all processors of the job.

Matrices that take the same activations (a layer's q, k and v) are multiplied in one call, which wakes the threads once.

Legend: O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, K survivors, T tokens.
"""

import functools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from lottery.errors import InputError
from lottery.kernels import pages, product_avx2, product_avx512, product_plain, product_rows
from lottery.kernels.parallel import CAN_CACHE
from lottery.kernels.product_rows import C_OUT, C_OUT_FORM, C_TOKENS, C_X, C_X_BYTES, Call, Part
from lottery.kernels.quantizing import BF16, F8, F32, FORMS, I8
from lottery.kernels.simd import bits_of_float, float_of_bits, half_of_bits, number, store_16, store_32, word_16
from lottery.kernels.threads import run_job, team

KERNELS = ("avx512", "avx2", "plain")
SPARE_BYTES = 64  # behind the last survivor: a vector is read whole
GRAIN_BYTES = 2 << 20  # of weights; with fewer for each thread, waking threads takes longer than they save (LOG.md)
MOST_TOKENS = 8  # LOG.md says from where on a product of whole matrices is faster


def available_kernels() -> list[str]:
    """Returns the kernels that this processor can run, the fastest first."""
    able = {"avx512": product_avx512.AVAILABLE, "avx2": product_avx2.AVAILABLE, "plain": True}
    return [name for name in KERNELS if able[name]]


@functools.cache
def pick_kernel() -> str:
    """Returns the kernel that multiplies stored weights: the fastest, or the one that LOTTERY_KERNEL names.

    Raises InputError if there is no such kernel, or if this processor cannot run it.
    """
    able, given = available_kernels(), os.environ.get("LOTTERY_KERNEL", "")
    if given and given not in KERNELS:
        raise InputError(f"LOTTERY_KERNEL={given}: give one of {', '.join(KERNELS)}, or nothing for the fastest")
    if given and given not in able:
        raise InputError(f"LOTTERY_KERNEL={given}: this processor lacks its instructions; it can run {', '.join(able)}")
    return given or able[0]


@dataclass(frozen=True)
class Stored:
    """A matrix as it lies in memory. With a bitmask, SPARE_BYTES lie behind the last value."""

    rows: int
    columns: int
    form: str  # safetensors' name of the type of the values
    values_K: np.ndarray
    bitmask_OB: np.ndarray | None = None
    start_O: np.ndarray | None = None  # where the survivors of each row begin
    step_O: np.ndarray | None = None  # by which a row's codes are multiplied, float32
    bias_O: np.ndarray | None = None  # float32

    def row_bytes(self) -> np.ndarray:
        """Returns how many bytes of weights each row has, int64 [O]."""
        size = self.values_K.itemsize
        if self.bitmask_OB is None or self.start_O is None:
            return np.full(self.rows, size * self.columns, np.int64)
        return np.diff(self.start_O, append=len(self.values_K)) * size + self.bitmask_OB.shape[1]


def spare(values_K: np.ndarray) -> np.ndarray:
    """Returns a copy of the survivors behind which SPARE_BYTES lie."""
    return pages.copy(values_K, SPARE_BYTES)


def reads_whole(kernel: str, columns: int) -> bool:
    """Returns whether a matrix without a mask is multiplied without reading beyond its end. AVX2 reads eight numbers."""
    return kernel != "avx2" or columns % product_avx2.LANES == 0


def multiplies_bfloat16(kernel: str, x_form: int, form: str) -> bool:
    """Returns whether activations stay bfloat16. Otherwise they become float32, which changes no number."""
    return kernel == "avx512" and product_avx512.BFLOAT and x_form == BF16 and FORMS[form] in (BF16, I8, F8)


def column_order(kernel: str, form: str, bfloat: bool) -> list[int]:
    """Returns the order in which a kernel wants the activations of one step."""
    return [0] if kernel == "plain" else product_rows.INSTRUCTIONS[kernel].order(FORMS[form], bfloat)


def shares_activations(kernel: str, a: Stored, b: Stored) -> bool:
    """Returns whether two matrices can be multiplied in one `Product`."""
    return a.columns == b.columns and all(
        multiplies_bfloat16(kernel, x_form, a.form) == multiplies_bfloat16(kernel, x_form, b.form)
        and column_order(kernel, a.form, x_form == BF16) == column_order(kernel, b.form, x_form == BF16)
        for x_form in (BF16, F32)
    )


def balance(bytes_R: np.ndarray, ranks: int) -> np.ndarray:
    """Returns the rows at which `ranks` blocks of about as many bytes begin and end, int64 [ranks + 1]."""
    ends = np.cumsum(bytes_R)
    inner = np.searchsorted(ends, ends[-1] * np.arange(1, ranks) / ranks) + 1 if len(ends) else []
    return np.concatenate([[0], np.minimum(inner, len(ends)), [len(ends)]]).astype(np.int64)


class Product:
    """Computes x W' for one or several matrices W that take the same activations x (`shares_activations`)."""

    def __init__(self, matrices: list[Stored], threads: int, kernel: str) -> None:
        self.matrices, self.kernel = matrices, kernel
        bytes_R = np.concatenate([m.row_bytes() for m in matrices])
        self.edges = balance(bytes_R, int(min(threads, max(1, bytes_R.sum() // GRAIN_BYTES))))
        self.threads = threads if len(self.edges) > 2 else 1
        self.plans: dict[int, Plan] = {}  # by the type of the activations

    def __call__(self, x_at: int, x_form: int, tokens: int, out_at: int) -> None:
        """Reads x [T, I] at an address, of type BF16, F16 or F32 (`x_form`), and writes the results in the same type:
        those of the first matrix [T, O], then those of the second, ..."""
        plan = self.plans.get(x_form)
        if plan is None:
            plan = self.plans[x_form] = Plan(self, multiplies_bfloat16(self.kernel, x_form, self.matrices[0].form))
        plan.run(x_at, x_form, tokens, out_at)


class Plan:
    """The work of a `Product` as compiled code takes it: which rows of which matrix each thread multiplies."""

    def __init__(self, product: Product, bfloat: bool) -> None:
        first = product.matrices[0]
        self.threads, self.columns, self.bfloat = product.threads, first.columns, bfloat
        self.order = np.array(column_order(product.kernel, first.form, bfloat), np.int32)
        self.x_bytes = -(-self.columns // len(self.order)) * len(self.order) * (2 if bfloat else 4)
        # The addresses below stay valid as long as these arrays are held.
        self.held: list[Any] = [product.matrices]
        functions = [self.function(product.kernel, m) for m in product.matrices]
        before = np.cumsum([0, *(m.rows for m in product.matrices)])
        parts: list[list[int]] = []
        firsts = [0]
        for begin, end in zip(product.edges[:-1], product.edges[1:], strict=True):
            for matrix, (function, step_O, table), start in zip(product.matrices, functions, before[:-1], strict=True):
                rows = slice(max(begin, start) - start, min(end, start + matrix.rows) - start)
                if rows.start < rows.stop:
                    parts.append(describe(matrix, rows, function.address, step_O, table, int(start)))
            firsts.append(len(parts))
        self.parts, self.firsts = np.array(parts, np.uint64).reshape(-1, len(Part)), np.array(firsts, np.uint64)
        self.call = np.zeros(len(Call), np.uint64)

    def function(self, kernel: str, matrix: Stored) -> tuple[Any, np.ndarray | None, np.ndarray]:
        """Returns the compiled function for a matrix, the steps of its rows as the function wants them, and its table."""
        form, masked = FORMS[matrix.form], matrix.bitmask_OB is not None
        step_O = matrix.step_O
        if kernel == "plain":
            function, table = product_plain.rows_function(form, masked), product_plain.table(form)
        else:
            function, table = (
                product_rows.rows_function(kernel, form, masked, self.bfloat),
                product_rows.table(kernel, form),
            )
            if step_O is not None and kernel == "avx2":
                step_O = step_O * np.float32(product_avx2.code_scale(form))
        self.held += [step_O, table]
        return function, step_O, table

    def run(self, x_at: int, x_form: int, tokens: int, out_at: int) -> None:
        workers = team(self.threads)  # not held: a forked process has others
        with workers.lock:
            padded = tokens if tokens == 1 else -(-tokens // product_rows.TOKENS) * product_rows.TOKENS
            scratch_at = workers.scratch(padded * self.x_bytes)
            _multiply(
                workers.semaphores, workers.job, workers.thread_of_cpu, self.parts, self.firsts, self.call,
                x_at, x_form, tokens, padded, self.columns, self.order, self.bfloat, self.x_bytes, scratch_at, out_at,
            )  # fmt: skip


def describe(
    matrix: Stored, rows: slice, function: int, step_O: np.ndarray | None, table: np.ndarray, before: int
) -> list[int]:
    """Returns the words of a `Part`."""

    def row_address(array: np.ndarray | None) -> int:
        return 0 if array is None else array.ctypes.data + rows.start * array.strides[0]

    value = rows.start * matrix.columns if matrix.start_O is None else int(matrix.start_O[rows.start])
    words = {
        Part.FUNCTION: function,
        Part.ROWS: rows.stop - rows.start,
        Part.COLUMNS: matrix.columns,
        Part.MASK: row_address(matrix.bitmask_OB),
        Part.VALUES: matrix.values_K.ctypes.data + value * matrix.values_K.itemsize,
        Part.STEP: row_address(step_O),
        Part.BIAS: row_address(matrix.bias_O),
        Part.TABLE: table.ctypes.data,
        Part.ROW: rows.start,
        Part.MATRIX_ROWS: matrix.rows,
        Part.RESULTS_BEFORE: before,
    }
    return [int(words[word]) for word in Part]


@njit(nogil=True, inline="always")
def _prepare(x_at, x_form, tokens, padded, columns, order, bfloat, x_bytes, out_at):
    """Writes the activations as the kernel wants them: bfloat16 or float32, in its order, whole steps of whole groups
    of tokens, with zeros behind the last column and the last token."""
    lanes = order.size
    for token in range(padded):
        row = out_at + np.uint64(token) * x_bytes
        for begin in range(0, columns, lanes):
            for lane in range(lanes):
                column = begin + order[lane]
                index = np.uint64(token) * np.uint64(columns) + np.uint64(column)
                at = np.uint64(begin + lane)
                inside = column < columns and token < tokens
                if bfloat:
                    store_16(row + np.uint64(2) * at, word_16(x_at + np.uint64(2) * index) if inside else np.uint64(0))
                    continue
                value = np.float32(0)
                if inside:
                    if x_form == F32:
                        value = number(x_at + np.uint64(4) * index)
                    elif x_form == BF16:
                        value = float_of_bits(word_16(x_at + np.uint64(2) * index) << np.uint64(16))
                    else:
                        value = half_of_bits(word_16(x_at + np.uint64(2) * index))
                store_32(row + np.uint64(4) * at, bits_of_float(value))


@njit(nogil=True, cache=CAN_CACHE)
def _multiply(
    semaphores, job, thread_of_cpu, parts, firsts, call,
    x_at, x_form, tokens, padded, columns, order, bfloat, x_bytes, scratch_at, out_at,
):  # fmt: skip
    natural = x_form == BF16 if bfloat else x_form == F32
    if natural and padded == tokens and columns % order.size == 0:
        for lane in range(order.size):
            natural &= order[lane] == lane
    else:
        natural = False
    call[C_TOKENS] = tokens
    if natural:
        call[C_X] = x_at
    else:
        _prepare(
            np.uint64(x_at), x_form, tokens, padded, columns, order, bfloat, np.uint64(x_bytes), np.uint64(scratch_at)
        )
        call[C_X] = scratch_at
    call[C_X_BYTES] = x_bytes
    call[C_OUT] = out_at
    call[C_OUT_FORM] = x_form
    run_job(semaphores, job, thread_of_cpu, parts, firsts, call)
