"""Defines linear layers whose weights stay small in memory: packed, in float8, or in bitsandbytes' int8.

Legend: O outputs, I inputs, B = ceil(I/8) bytes of a row's bitmask, K survivors.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lottery.errors import InputError, is_out_of_memory
from lottery.kernels import cuda, quantizing
from lottery.models.tensors import DTYPES
from lottery.ticket.matrix import StoredMatrix

THRESHOLD = 6.0  # bitsandbytes keeps activations from here on in 16 bits (LLM.int8(), section 3.2)


class PackedOnly(threading.local):
    now = False


PACKED_ONLY = PackedOnly()


@contextlib.contextmanager
def as_packed() -> Iterator[None]:
    """Lets sparse layers compute as packed ones do, in this thread, however few the tokens are."""
    before, PACKED_ONLY.now = PACKED_ONLY.now, True
    try:
        yield
    finally:
        PACKED_ONLY.now = before


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    """Returns a CPU tensor as the kernels take it: 8-bit codes as uint8, other types as unsigned bits."""
    return tensor.view({1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[tensor.itemsize]).numpy()


def starts(bitmask_OB: np.ndarray, device: str) -> np.ndarray:
    """Returns the index of the first survivor of each row or, for a GPU, of each chunk of a row."""
    if device.startswith("cuda"):
        return quantizing.chunk_offsets(bitmask_OB, cuda.CHUNK)
    return quantizing.row_offsets(bitmask_OB)


class Workspace:
    """The one buffer of a model into which each packed layer unpacks its weights before it multiplies. It is allocated
    when a layer first needs it."""

    def __init__(self, numel: int, dtype: torch.dtype, device: str | torch.device) -> None:
        self.numel, self.dtype, self.device = numel, dtype, torch.device(device)
        self.held: torch.Tensor | None = None
        self.transposed_buffer: torch.Tensor | None = None  # a Conv1D needs its matrix transposed
        self.lock = threading.Lock()

    @property
    def buffer(self) -> torch.Tensor:
        if self.held is None:
            with torch.inference_mode(False):  # otherwise code outside of that mode could not use the buffer again
                self.held = torch.empty(self.numel, dtype=self.dtype, device=self.device)
        return self.held

    @property
    def nbytes(self) -> int:
        """The bytes that it takes, also before it is allocated."""
        return self.numel * self.dtype.itemsize * (1 if self.transposed_buffer is None else 2)

    def move(self, device: torch.device) -> None:
        if self.device != device:
            self.device, self.held, self.transposed_buffer = device, None, None

    def view(self, rows: int, columns: int) -> torch.Tensor:
        return self.buffer[: rows * columns].view(rows, columns)

    def transpose(self, weight_OI: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return weight_OI.T.contiguous()
        if self.transposed_buffer is None:
            with torch.inference_mode(False):
                self.transposed_buffer = torch.empty_like(self.buffer)
        return self.transposed_buffer[: weight_OI.numel()].view(weight_OI.shape[::-1]).copy_(weight_OI.T)


class PackedLinear(nn.Module):
    """Computes y = x W' + b, with W as it is stored: bitmask and survivors, 8-bit codes with their scale, or both.

    Before each product the layer unpacks W into the workspace. The product is then that of the dense layer which it
    replaces, and gives the same bits. `product` is linear, conv1d (GPT-2's), or `bias after` (Falcon's). The layer is
    for inference only.
    """

    bitmask_OB: torch.Tensor | None
    start: torch.Tensor | None  # index of the first survivor: [O] per row on a CPU, [O, C] per chunk on a GPU
    values_K: torch.Tensor
    step_O: torch.Tensor | None

    def __init__(
        self,
        matrix: StoredMatrix,
        bias: torch.Tensor | None,
        workspace: Workspace,
        device: str,
        product: str = "linear",
    ) -> None:
        super().__init__()
        self.product = product
        self.out_features, self.in_features = matrix.rows, matrix.columns
        self.values_dtype, self.workspace = matrix.values_dtype, workspace
        self.bias = bias if bias is None else nn.Parameter(bias.to(device), requires_grad=False)

        def keep(name: str, array: np.ndarray | None, dtype: torch.dtype | None = None) -> None:
            tensor = None if array is None else torch.from_numpy(self.hold(array))
            tensor = tensor if tensor is None or dtype is None else tensor.view(dtype)
            self.register_buffer(name, tensor if tensor is None else tensor.to(device), persistent=False)

        mask_OB, scale_O = matrix.bitmask_OB, matrix.scale_O
        keep("bitmask_OB", mask_OB)
        keep("start", None if mask_OB is None else starts(mask_OB, device))
        keep("values_K", matrix.flat, DTYPES[matrix.values_dtype])
        keep(
            "step_O",
            None if scale_O is None or not matrix.quantized else quantizing.step_sizes(scale_O, matrix.quantized),
        )
        self.fused = self.can_fuse()

    def hold(self, array: np.ndarray) -> np.ndarray:
        """Returns a copy of what is stored, which the layer keeps."""
        return array.copy()

    def can_fuse(self) -> bool:
        """Returns whether a single kernel can unpack the weights on the device where they lie now."""
        if not self.values_K.is_cuda:
            return False
        index = torch.cuda.current_device() if self.values_K.device.index is None else self.values_K.device.index
        return cuda.can_use_triton(index, self.values_K.dtype, self.bitmask_OB is not None, self.workspace.dtype)

    @property
    def unpacks_for_one_token(self) -> bool:
        """Whether the weights go through the workspace when a single token is decoded."""
        return True

    def unpack_weight(self, out_OI: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the dense matrix. It lies in `out_OI`, or in the workspace until the next layer unpacks its weights."""
        if out_OI is not None:
            pass
        elif torch.compiler.is_compiling():
            # The compiler would copy the whole buffer, since several layers write to it; and a CUDA graph its inputs.
            like = self.workspace
            out_OI = torch.empty(self.out_features, self.in_features, dtype=like.dtype, device=like.device)
        else:
            out_OI = self.workspace.view(self.out_features, self.in_features)
        if self.fused:
            return cuda.unpack_weights(self.bitmask_OB, self.start, self.values_K, self.step_O, out_OI)
        if out_OI.is_cuda:
            return cuda.unpack_weights_with_torch(self.bitmask_OB, self.values_K, self.step_O, out_OI)
        bits = [None if t is None else t.numpy() for t in (self.bitmask_OB, self.start, self.step_O)]
        mask_OB, start_O, step_O = bits
        values_K = bits_of(self.values_K)
        if out_OI.dtype != torch.float16:
            quantizing.unpack_weights(mask_OB, start_O, values_K, self.values_dtype, step_O, bits_of(out_OI))
            return out_OI
        # The CPU kernels have no float16: the weights go through float32, 256 rows at a time.
        for first in range(0, self.out_features, 256):
            rows = slice(first, min(first + 256, self.out_features))
            part = torch.empty(rows.stop - first, self.in_features)
            values = (
                values_K if mask_OB is not None else values_K[first * self.in_features : rows.stop * self.in_features]
            )
            cut = [None if array is None else array[rows] for array in (mask_OB, start_O, step_O)]
            quantizing.unpack_weights(cut[0], cut[1], values, self.values_dtype, cut[2], bits_of(part))
            out_OI[rows] = part
        return out_OI

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        refuse_gradients(x)
        if torch.compiler.is_compiling():
            return self.multiply(x)
        with self.workspace.lock:  # a layer of another thread would unpack into the same memory
            return self.multiply(x)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        weight_OI = self.unpack_weight()
        if self.product == "conv1d" and self.bias is not None:
            weight_IO = self.workspace.transpose(weight_OI)
            out = torch.addmm(self.bias, x.view(-1, x.shape[-1]), weight_IO)
            return out.view(*x.shape[:-1], self.out_features)
        if self.product == "bias after" and self.bias is not None:
            return x @ weight_OI.T + self.bias
        return functional.linear(x, weight_OI, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves the layer to a device. Raises InputError for a change of type."""
        own = self.workspace.dtype
        if fn(torch.empty(0, dtype=own)).dtype != own:
            raise InputError(f"dtype: this ticket was loaded to compute in {own}; load it again with another dtype")
        device = fn(torch.empty(0, dtype=torch.uint8)).device
        if self.bitmask_OB is not None and device.type != self.bitmask_OB.device.type:
            self.start = torch.from_numpy(starts(self.bitmask_OB.cpu().numpy(), device.type))
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.to(device)
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.to(device), requires_grad=False)
        self.workspace.move(self.values_K.device)
        self.fused = self.can_fuse()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise InputError(
            "state_dict: this ticket's layers are packed in memory and have none; keep the ticket's folder"
        )

    def extra_repr(self) -> str:
        packed = "whole" if self.bitmask_OB is None else "packed"
        return f"in_features={self.in_features}, out_features={self.out_features}, {packed} {self.values_dtype}"


def refuse_gradients(x: torch.Tensor) -> None:
    """Raises InputError if a gradient is asked for."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise InputError(
            "runtime: packed, sparse and 8-bit layers have no gradients; load a ticket of 16 bits, runtime=dense"
        )


def check_int8(device: str) -> None:
    """Raises InputError where bitsandbytes does not compute on `device`."""
    codes = np.eye(4, dtype=np.uint8)
    try:
        layer = int8_linear(StoredMatrix(4, 4, "F32", False, "int8", codes, None, np.ones(4, np.float32)), None, device)
        with torch.inference_mode():
            layer(torch.ones(1, 4, dtype=torch.float16, device=device))
    except Exception as e:  # a library with compiled code of its own may fail in any way
        if is_out_of_memory(e):
            raise
        reason = " ".join(str(e).split())[:200]
        raise InputError(
            f"quantize=int8: bitsandbytes is not usable on {device} ({type(e).__name__}: {reason}); give runtime=packed, "
            f"or quantize=fp8"
        ) from e


def int8_weight(codes_OI: torch.Tensor, scale_O: torch.Tensor) -> Any:
    from bitsandbytes.nn import Int8Params

    return Int8Params(codes_OI, requires_grad=False, has_fp16_weights=False, CB=codes_OI, SCB=scale_O)


@functools.cache
def int8_class() -> Any:
    """Returns bitsandbytes' layer class, changed so that codes and scales move with the model.

    In bitsandbytes' own class they stay on the old device when a module around the layer is moved.
    """
    from bitsandbytes.nn import Linear8bitLt

    class StoredInt8(Linear8bitLt):
        weight: Any
        bias: Any

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            codes_OI, scale_O = self.weight.data, self.weight.SCB if self.weight.CB is not None else self.state.SCB
            moved_OI = fn(codes_OI)
            self.weight = int8_weight(moved_OI, scale_O.to(moved_OI.device))
            self.state.CB = self.state.SCB = None  # taken from the weight at the next product
            if self.bias is not None:
                self.bias = nn.Parameter(fn(self.bias.data), requires_grad=False)
            return self

    return StoredInt8


def is_int8(module: nn.Module) -> bool:
    return type(module).__name__ == "StoredInt8"  # by name: this must not import bitsandbytes


def int8_linear(matrix: StoredMatrix, bias: torch.Tensor | None, device: str) -> nn.Module:
    """Returns bitsandbytes' layer over the stored codes. Nothing is quantized again."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every call that activations become float16
    assert matrix.scale_O is not None
    codes_OI = (
        torch.from_numpy(matrix.unpack().flat.reshape(matrix.rows, matrix.columns).copy()).view(torch.int8).to(device)
    )
    scale_O = torch.from_numpy(matrix.scale_O.copy()).to(device)
    layer = int8_class()(
        matrix.columns,
        matrix.rows,
        bias=bias is not None,
        has_fp16_weights=False,
        threshold=THRESHOLD,
        device="meta",
    )
    layer.weight = int8_weight(codes_OI, scale_O)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(device), requires_grad=False)
    return layer


def resident_tensors(model: Any) -> dict[int, torch.Tensor]:
    """Returns every tensor that the model holds on its device, by address, so that a shared tensor counts once.

    These are parameters, buffers, and the scales that bitsandbytes keeps outside of its parameters. The workspace is not
    among them (`workspaces`).
    """
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if state := getattr(module, "state", None):
            tensors += [t for t in (getattr(module.weight, "SCB", None), getattr(state, "SCB", None)) if t is not None]
    return {tensor.data_ptr(): tensor for tensor in tensors if tensor.numel()}


def workspaces(model: Any, one_token: bool = False) -> list[Workspace]:
    """Returns the workspaces of a model's packed layers, each once; with `one_token` those that decoding a token uses."""
    layers = [m for m in model.modules() if isinstance(m, PackedLinear) and (m.unpacks_for_one_token or not one_token)]
    return list({id(layer.workspace): layer.workspace for layer in layers}.values())
