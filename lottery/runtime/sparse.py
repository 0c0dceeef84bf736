"""Linear layers that multiply few tokens straight from bitmask and survivors, and many as packed layers do.

Which way is taken depends on the tokens of the model's call, and not on those that reach one layer: a text's figures
must not depend on how a mixture of experts spreads its tokens.

Legend: O outputs, I inputs, T tokens.
"""

import threading
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lottery.kernels import cuda_product, pages, product
from lottery.kernels.quantizing import FORMS
from lottery.progress import say
from lottery.runtime.layers import PACKED_ONLY, PackedLinear, bits_of, refuse_gradients

X_FORMS = {torch.bfloat16: FORMS["BF16"], torch.float16: FORMS["F16"], torch.float32: FORMS["F32"]}
SAFETENSORS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
# The layers that take the same activations, by their names under one parent, in the order in which a model calls them.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class CallTokens(threading.local):
    """What is known of the call of the model that is running in a thread."""

    few = False
    torch_threads = 0  # how many torch had before, while it has one


class Way:
    """Watches the calls of a model, and tells its layers which way to take.

    Where products use several threads, torch uses one meanwhile: its threads spin for milliseconds after each of their
    jobs, on the processors that the next product needs.
    """

    def __init__(self, model: nn.Module, threads: int, kernel: str) -> None:
        self.calls, self.threads, self.kernel = CallTokens(), threads, kernel
        self.several = False  # whether any product uses several threads
        model.register_forward_pre_hook(self.begin, with_kwargs=True)
        model.register_forward_hook(self.end, always_call=True)

    def begin(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = given[0] if given else named.get("input_ids")
        embedded = named.get("inputs_embeds")
        count = 0
        if isinstance(ids, torch.Tensor):
            count = ids.numel()
        elif isinstance(embedded, torch.Tensor):
            count = embedded.numel() // embedded.shape[-1]
        self.calls.few = 0 < count <= product.MOST_TOKENS
        if self.few and self.several and not self.calls.torch_threads:
            self.calls.torch_threads = torch.get_num_threads()
            torch.set_num_threads(1)

    @property
    def few(self) -> bool:
        """Whether the call that is running in this thread has few tokens."""
        return self.calls.few and not PACKED_ONLY.now

    def end(self, *_: Any) -> None:
        self.calls.few = False
        if self.calls.torch_threads:
            torch.set_num_threads(self.calls.torch_threads)
            self.calls.torch_threads = 0


class Group:
    """Layers that a model calls one after the other with the same activations. The first call computes all."""

    def __init__(self, members: list["SparseLinear"]) -> None:
        self.members, self.leader = members, members[0]
        way = members[0].way
        self.product = product.Product([m.stored() for m in members], way.threads, way.kernel)
        self.rows = [m.out_features for m in members]
        self.kept: tuple[torch.Tensor, dict[SparseLinear, torch.Tensor]] | None = None

    def result(self, member: "SparseLinear", x: torch.Tensor) -> torch.Tensor:
        if member is not self.leader:
            kept = self.kept
            if kept is not None and kept[0].dtype == x.dtype and torch.equal(kept[0], x):
                return kept[1][member]
            for one in self.members:  # they do not share their activations after all
                one.group = Group([one])
            return Group([member]).result(member, x)
        outs = multiply(self.product, x, self.rows)
        if len(self.members) > 1:
            self.kept = (x.clone(), dict(zip(self.members, outs, strict=True)))
        return outs[0]


def multiply(work: product.Product, x: torch.Tensor, rows: list[int]) -> list[torch.Tensor]:
    """Returns x W' for each matrix, in the type of x."""
    *batch, columns = x.shape
    tokens = x.numel() // columns
    x = x.contiguous()
    # For a small model every microsecond of this counts: it runs 120 times for a token of SmolLM2-135M.
    if len(rows) == 1 or tokens == 1:
        out = x.new_empty((*batch, sum(rows)))
        work(x.data_ptr(), X_FORMS[x.dtype], tokens, out.data_ptr())
        return [out] if len(rows) == 1 else list(out.split_with_sizes(rows, -1))
    out = x.new_empty(tokens * sum(rows))
    work(x.data_ptr(), X_FORMS[x.dtype], tokens, out.data_ptr())
    return [part.view(*batch, -1) for part in out.split_with_sizes([tokens * r for r in rows])]


class SparseLinear(PackedLinear):
    """A packed layer that computes few tokens straight from the stored matrix.

    Each product equals float64 arithmetic on the stored values and on the activations, to within float32 rounding.
    """

    way: Way
    group: Group | None = None  # on a CPU
    on_gpu = False

    def hold(self, array: np.ndarray) -> np.ndarray:
        return product.spare(array) if array.ndim == 1 else pages.copy(array)

    @property
    def unpacks_for_one_token(self) -> bool:
        return self.group is None and not self.on_gpu

    def stored(self) -> product.Stored:
        """Returns the matrix as the kernels take it, in this layer's own memory; only a bias is copied."""
        mask_OB, start_O, step_O = (
            None if t is None else t.numpy() for t in (self.bitmask_OB, self.start, self.step_O)
        )
        bias_O = None if self.bias is None else self.bias.float().numpy()
        return product.Stored(
            self.out_features, self.in_features, self.values_dtype, bits_of(self.values_K), mask_OB, start_O, step_O, bias_O
        )  # fmt: skip

    def is_few(self, x: torch.Tensor) -> bool:
        if not 0 < x.numel() <= product.MOST_TOKENS * self.in_features or x.dtype not in X_FORMS:
            return False
        # torch compiles a single step without the hooks of the model: then the layer's tokens are the call's.
        return self.way.few or torch.compiler.is_compiling()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_few(x):
            return super().forward(x)
        if self.on_gpu:
            refuse_gradients(x)
            given = self.bitmask_OB, self.start, self.values_K, self.step_O, self.bias
            return cuda_product.multiply(x.reshape(-1, self.in_features), *given).view(*x.shape[:-1], -1)
        if self.group is None or torch.compiler.is_compiling():
            return super().forward(x)
        refuse_gradients(x)
        return self.group.result(self, x)

    def can_fuse(self) -> bool:
        """Also finds out whether the GPU on which the weights lie now multiplies them without unpacking."""
        fused = super().can_fuse()
        self.on_gpu = self.values_K.is_cuda and cuda_product.can_use_product(
            self.values_K.get_device(), self.values_K.dtype, self.bitmask_OB is not None, self.workspace.dtype
        )
        return fused

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.values_K.data_ptr()
        super()._apply(fn, recurse)
        if self.values_K.data_ptr() != before:
            self.group = None
            if not self.values_K.is_cuda:
                held = torch.from_numpy(product.spare(bits_of(self.values_K)))
                self.values_K = held.view(self.values_K.dtype)
                self.group = Group([self])
        return self


class WholeLinear(nn.Linear):
    """A linear layer over an unpruned weight, which multiplies few tokens with the same loops as a sparse layer does.

    torch's own product of one token reaches half of the memory's bandwidth on many processors.
    """

    def __init__(self, linear: nn.Linear, way: Way) -> None:
        super().__init__(1, 1, bias=False, device="meta")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.way = linear.weight, linear.bias, way
        self.product: tuple[int, product.Product] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (
            not self.way.few
            or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            or x.dtype != self.weight.dtype
            or not 0 < x.numel() <= product.MOST_TOKENS * self.in_features
        ):
            return functional.linear(x, self.weight, self.bias)
        at = self.weight.data_ptr()
        if self.product is None or self.product[0] != at:  # the model was moved
            stored = product.Stored(
                self.out_features, self.in_features, SAFETENSORS[self.weight.dtype],
                bits_of(self.weight.detach()).reshape(-1), bias_O=None if self.bias is None else self.bias.detach().float().numpy(),
            )  # fmt: skip
            self.product = at, product.Product([stored], self.way.threads, self.way.kernel)
        return multiply(self.product[1], x, [self.out_features])[0]


def use_products(model: nn.Module, threads: int, kernel: str, device: str) -> None:
    """Lets the sparse layers of a loaded model multiply few tokens with the kernels, on a CPU the unpruned ones too."""
    way = Way(model, threads, kernel)
    if device != "cpu":
        on_gpu = [layer for layer in model.modules() if isinstance(layer, SparseLinear)]
        for layer in on_gpu:
            layer.way = way
        if not all(layer.on_gpu for layer in on_gpu):
            say(
                "warning: runtime=sparse: Triton does not multiply this ticket's weights here, so that it runs as with runtime=packed"
            )
        return
    for parent in list(model.modules()):
        layers = {name: child for name, child in parent.named_children() if isinstance(child, SparseLinear)}
        for layer in layers.values():
            layer.way = way
        together = [[layers.pop(name) for name in names if name in layers] for names in TOGETHER]
        for members in [group for named in together for group in alike(named, kernel)] + [[m] for m in layers.values()]:
            shared = Group(members)
            way.several |= shared.product.threads > 1
            for layer in members:
                layer.group = shared
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and can_multiply(child, kernel):
                setattr(parent, name, WholeLinear(child, way).eval())


def alike(layers: list[SparseLinear], kernel: str) -> list[list[SparseLinear]]:
    """Returns the layers in groups whose matrices can be multiplied together."""
    groups: list[list[SparseLinear]] = []
    for layer in layers:
        for group in groups:
            if product.shares_activations(kernel, group[0].stored(), layer.stored()):
                group.append(layer)
                break
        else:
            groups.append([layer])
    return groups


def can_multiply(linear: nn.Linear, kernel: str) -> bool:
    """Returns whether the kernels can multiply an unpruned weight. Nothing is read beyond its end."""
    weight = linear.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in SAFETENSORS
        and weight.is_contiguous()
        and product.reads_whole(kernel, linear.in_features)
    )
