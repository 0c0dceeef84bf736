"""Runs a model block by block: the weights of one transformer block are in memory at a time.

A block of transformers takes more than its hidden states: masks, rotary tables, positions, and each family has its own
arguments. They are recorded from the model's own forward pass, for every block, and then used again for other samples
of the same length.

Legend: T tokens of a sample, H width of the hidden states, O outputs, I inputs, W words.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lottery.errors import InputError
from lottery.models.architecture import model_class, read_config, transformers_errors
from lottery.models.families import Place
from lottery.runtime.block_parts import NAME, Matrix, Part, find_part
from lottery.runtime.load import TensorSource, choose_experts
from lottery.runtime.widening import wide_products

NOT_UNDERSTOOD = "is not understood, so that its blocks cannot be run one by one; give method=magnitude"


class StopForwardError(Exception):
    """Ends a forward pass whose rest is not needed."""


class BlockModel:
    """A transformers model without weights, into which the weights of one block at a time are read.

    Everything outside of the blocks (embeddings, norms, head) is read at once. Raises InputError for a model whose
    tensors have no place in it.
    """

    def __init__(self, source: TensorSource, places: Sequence[Place], dtype: str, device: str) -> None:
        from accelerate import init_empty_weights

        self.source, self.dtype, self.device = source, getattr(torch, dtype), device
        config = read_config(source.folder)
        cls = model_class(config, source.folder)
        with transformers_errors(source.folder, "config.json"), init_empty_weights(include_buffers=False):
            self.model = cls._from_config(config, dtype=self.dtype).eval().requires_grad_(False)
        self.layers = int(config.get_text_config().num_hidden_layers)
        self.path, self.blocks = self._find_blocks()
        self.head = next(p for p, m in self.model.named_modules() if m is self.model.get_output_embeddings())
        self.parts = self._find_parts(places)
        self.copied: set[str] = set()  # parameters that `replace` has copied
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.returns_tuple = False
        self._read([name for name in self.parts if self.layer_of(name) is None])
        self.model.tie_weights()
        choose_experts(self.model, source.folder)
        for name, buffer in list(self.model.named_buffers()):
            owner, _, own = name.rpartition(".")
            self.model.get_submodule(owner)._buffers[own] = buffer.to(device)

    @property
    def name(self) -> str:
        return f"model={self.source.folder}"

    def _find_blocks(self) -> tuple[str, nn.ModuleList]:
        for path, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.layers:
                return path, module
        raise InputError(f"{self.name}: its list of {self.layers} blocks {NOT_UNDERSTOOD}")

    def _find_parts(self, places: Sequence[Place]) -> dict[str, Part]:
        """Returns tensor of the checkpoint -> where it lies in the model. Every parameter must be covered."""
        parameters = dict(self.model.named_parameters())
        found = {p.name: find_part(p, parameters, self.model.base_model_prefix, self.head) for p in places}
        tied = {f"{self.head}.weight"} if self.model.config.get_text_config().tie_word_embeddings else set()
        known = {name: part for name, part in found.items() if part}
        unknown = [
            *(found.keys() - known.keys()),
            *(parameters.keys() - {part.parameter for part in known.values()} - tied),
        ]
        if unknown:
            what = f"the place of {min(unknown)!r} in {type(self.model).__name__}"
            raise InputError(f"{self.name}: {what} {NOT_UNDERSTOOD}")
        return known

    def layer_of(self, name: str) -> int | None:
        """Returns the block in which a tensor of the checkpoint lies, None for one outside of the blocks."""
        if not self.parts[name].parameter.startswith(f"{self.path}."):
            return None
        return int(self.parts[name].parameter.removeprefix(f"{self.path}.").split(".")[0])

    def matrices(self, place: Place) -> list[Matrix]:
        """Returns the matrices that a tensor of the checkpoint holds: one, or one of each expert."""
        if place.role == "lm_head":  # also one that will be untied from the embeddings
            return [Matrix(place.name, self.head, Part(f"{self.head}.weight"))]
        part = self.parts[place.name]
        module, _, own = part.parameter.rpartition(".")
        if not NAME.fullmatch(place.name):
            return [Matrix(place.name, module, part, place.transposed)]
        experts = [part.expert] if part.expert is not None else range(self.model.get_submodule(module).num_experts)
        second = own == "down_proj"
        return [
            Matrix(place.name, module, Part(part.parameter, e, part.half), False, e, second, len(experts))
            for e in experts
        ]

    def weight(self, matrix: Matrix) -> torch.Tensor:
        """Returns the matrix [O, I], in the memory of the model."""
        weight = matrix.part.view(self.model.get_parameter(matrix.part.parameter))
        return weight.T if matrix.transposed else weight

    def replace(self, matrix: Matrix, weight_OI: torch.Tensor) -> None:
        """Puts another matrix into the model. The memory of the old one may belong to the file and is left alone."""
        path = matrix.part.parameter
        new = (weight_OI.T if matrix.transposed else weight_OI).to(self.device, self.dtype).contiguous()
        if matrix.expert is None:
            self.set_parameter(path, new)
            return
        if path not in self.copied:
            self.set_parameter(path, self.model.get_parameter(path).clone())
            self.copied.add(path)
        matrix.part.view(self.model.get_parameter(path)).copy_(new)

    def _read(self, names: Sequence[str]) -> None:
        """Reads these tensors into the model. Experts that lie apart in the checkpoint are put together."""
        whole: dict[str, torch.Tensor] = {}
        for name in names:
            part, tensor = self.parts[name], self.source.tensor(name)
            if part.expert is None and part.half is None:
                whole[part.parameter] = tensor.to(self.device, self.dtype)
                continue
            if part.parameter not in whole:
                shape = self.model.get_parameter(part.parameter).shape
                whole[part.parameter] = torch.empty(shape, dtype=self.dtype, device=self.device)
            part.view(whole[part.parameter]).copy_(tensor)
        for path, tensor in whole.items():
            self.set_parameter(path, tensor)

    def set_parameter(self, path: str, tensor: torch.Tensor) -> None:
        module, _, own = path.rpartition(".")
        self.model.get_submodule(module)._parameters[own] = nn.Parameter(tensor, requires_grad=False)

    def load(self, block: int) -> None:
        """Reads the weights of one block."""
        self._read([name for name in self.parts if self.layer_of(name) == block])

    def unload(self, block: int) -> None:
        """Gives the memory of a block's weights back."""
        self.copied.clear()
        for name, parameter in list(self.blocks[block].named_parameters()):
            self.set_parameter(f"{self.path}.{block}.{name}", torch.empty_like(parameter, device="meta"))

    @contextmanager
    def _replaced(self, forward_of: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        """Within the block of code, every block has the forward that `forward_of(number, its own)` returns."""
        for i, block in enumerate(self.blocks):
            block.forward = forward_of(i, block.forward)
        try:
            yield
        finally:
            for block in self.blocks:
                del block.__dict__["forward"]

    @torch.inference_mode()
    def record(self, ids_1T: torch.Tensor) -> torch.Tensor:
        """Runs the model's own forward pass, a block in memory at a time, and records the arguments of each block.

        Returns the logits of the last positions, [1, positions, W].
        """
        self.calls = []

        def forward_of(i: int, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(hidden: torch.Tensor, *given: Any, **named: Any) -> Any:
                self.calls.append((given, named))
                self.load(i)
                out = own(hidden, *given, **named)
                self.unload(i)
                self.returns_tuple = isinstance(out, tuple)
                return out

            return forward

        with self._replaced(forward_of):
            logits = self._logits(ids_1T)
        if len(self.calls) != self.layers:
            raise InputError(f"{self.name}: the order of its blocks {NOT_UNDERSTOOD}")
        return logits

    def _logits(self, ids_1T: torch.Tensor, positions: int = 16) -> torch.Tensor:
        with wide_products(self.dtype, self.device):
            return self.model(ids_1T.to(self.device), use_cache=False, logits_to_keep=positions).logits

    @torch.inference_mode()
    def embed(self, ids_1T: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states that the first block gets, [1, T, H]."""
        found: list[torch.Tensor] = []

        def forward_of(i: int, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(hidden: torch.Tensor, *given: Any, **named: Any) -> Any:
                found.append(hidden)
                raise StopForwardError

            return forward

        with self._replaced(forward_of):
            try:
                self._logits(ids_1T)
            except StopForwardError:
                return found[0]
        raise AssertionError("the model has blocks")

    @torch.inference_mode()
    def run(self, block: int, hidden_1TH: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states after a block that is loaded."""
        given, named = self.calls[block]
        with wide_products(self.dtype, self.device):
            out = self.blocks[block](hidden_1TH.to(self.device), *given, **named)
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def finish(self, ids_1T: torch.Tensor, hidden_1TH: torch.Tensor, positions: int = 16) -> torch.Tensor:
        """Returns the logits of the last positions, [1, positions, W], from the hidden states after the last block."""

        def forward_of(i: int, own: Callable[..., Any]) -> Callable[..., Any]:
            out = hidden_1TH.to(self.device)
            return lambda *_, **__: (out,) if self.returns_tuple else out

        with self._replaced(forward_of):
            return self._logits(ids_1T, positions)
