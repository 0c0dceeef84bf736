"""Solves the matrices of a block in the order in which they compute, and repairs the residual stream.

Most blocks add to their hidden states h what attention gives and what the MLP gives: out = h + a + m, with a and m the
outputs of the last matrix of each. Let h' be the hidden states of the pruned model before the block. The last matrix of
attention then aims at h + a - h': as far as least squares can, the stream after it is that of the dense model, and what
all earlier matrices lost is made up for. The last matrix of the MLP aims in the same way at out - h' - a'. All other
matrices aim at their own dense outputs, from the inputs that the pruned model gives: to aim them at the dense model's
outputs shrinks them more and more from block to block, because regression on noisy inputs shrinks its result.

Legend: N samples, T tokens of a sample, H width of the hidden states.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lottery.progress import say
from lottery.pruning.calibrated import CalibratedSelection
from lottery.pruning.capture import Capture
from lottery.pruning.hidden_states import new_hidden_states
from lottery.pruning.solving import Piece
from lottery.runtime.block_parts import Matrix
from lottery.runtime.blocks import BlockModel

PASSES = 6  # of the samples through a block with four inputs: one dense, one for each input, one to go on
CLOSE = 0.02  # by which sums in 16 bits may differ, relative to their terms


@dataclass(frozen=True)
class Anatomy:
    """How the matrices of a block hang together. All names are paths of modules."""

    groups: list[list[str]]  # those of a group have the same input; in the order in which they compute
    attention: str | None  # the last matrix of attention, if the block adds its output to the hidden states
    mlp: str | None  # the same of the MLP


@torch.inference_mode()
def look(model: BlockModel, block: int, roles: Mapping[str, str], hidden_1TH: torch.Tensor) -> Anatomy:
    """Returns the anatomy of a block that is loaded, as one sample that runs through it shows.

    `roles`: path of each module with matrices -> attention or mlp. A matrix writes to the stream where the sum of the
    hidden states and its output is seen again: as an input of a later module, or, with the other one, after the block.
    """
    inputs: list[tuple[str, torch.Tensor]] = []
    outputs: dict[str, torch.Tensor] = {}
    passed: list[torch.Tensor] = []
    hidden_TH = hidden_1TH[0].to(model.device)

    def keep_input(_: Any, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], torch.Tensor) and given[0].numel() == hidden_TH.numel():
            passed.append(given[0].clone().reshape(hidden_TH.shape))

    def keep_output(path: str) -> Any:
        def hook(_: Any, __: Any, out: torch.Tensor) -> None:
            if out.numel() == hidden_TH.numel():
                outputs[path] = out.clone().reshape(hidden_TH.shape)

        return hook

    with ExitStack() as hooks:
        for path in roles:
            module = model.model.get_submodule(path)
            on_input = module.register_forward_pre_hook(lambda _, given, path=path: inputs.append((path, given[0])))
            hooks.callback(on_input.remove)
            if hasattr(module, "weight"):  # a module of experts has many
                hooks.callback(module.register_forward_hook(keep_output(path)).remove)
        for module in model.blocks[block].modules():
            hooks.callback(module.register_forward_pre_hook(keep_input).remove)
        out_TH = model.run(block, hidden_1TH)[0]
    groups: dict[int, list[str]] = {}
    for path, x in inputs:
        groups.setdefault(id(x), []).append(path)
    attention = next((path for path, _ in reversed(inputs) if roles[path] == "attention"), None)
    mlp = next((path for path, _ in reversed(inputs) if roles[path] == "mlp"), None)
    if attention not in outputs:
        return Anatomy(list(groups.values()), None, None)
    after_TH = hidden_TH + outputs[attention]
    both = mlp in outputs and is_close(out_TH, after_TH + outputs[mlp], outputs[mlp])
    seen = both or any(is_close(x_TH, after_TH, outputs[attention]) for x_TH in passed)
    return Anatomy(list(groups.values()), attention if seen else None, mlp if both else None)


def is_close(x: torch.Tensor, y: torch.Tensor, term: torch.Tensor) -> bool:
    """Returns whether two sums are the same but for rounding. Nearly all numbers must agree."""
    room = CLOSE * (y.float().abs() + term.float().square().mean().sqrt())
    return bool(((x.float() - y.float()).abs() <= room).float().mean() > 0.999)


class InOrderSelection(CalibratedSelection):
    """Selects as `CalibratedSelection` does, for a method that solves the matrices of a block in order."""

    dense_NTH: torch.Tensor | None = None  # the dense model's hidden states, from the first pruned block on
    is_told = False

    def passes(self, block: int) -> int:
        return PASSES if self._matrices_of(block) else 1

    def _solve_block(self, block: int, hidden_NTH: torch.Tensor) -> Iterator[dict[str, Piece]]:
        matrices = self._matrices_of(block)
        if not matrices:
            for states_NTH in (hidden_NTH, self.dense_NTH):
                if states_NTH is not None:
                    self._run(states_NTH, block, None)
            return
        if self.dense_NTH is None:
            self.dense_NTH = new_hidden_states(hidden_NTH.shape, hidden_NTH.dtype).copy_(hidden_NTH)
        places = [p for p in self.source.places if p.layer == block and p.role in ("attention", "mlp")]
        roles = {m.module: p.role for p in places for m in self.model.matrices(p)}
        anatomy = look(self.model, block, roles, self.dense_NTH[:1])
        self._tell(anatomy)
        middle_NTH = self._run_dense(block, anatomy)
        groups = [asked for group in anatomy.groups if (asked := [m for m in matrices if m.module in group])]
        for asked in groups:
            yield from self._solve(asked, self._capture(block, anatomy, asked, hidden_NTH, middle_NTH))
        goes_on = block != self.last or self.has_head
        if goes_on:
            self._run(hidden_NTH, block, None)
        self.advance(len(self.ids_NT) * (PASSES - 1 - len(groups) - goes_on))  # what the bar counted too many

    def _tell(self, anatomy: Anatomy) -> None:
        if not self.is_told and not (anatomy.attention and anatomy.mlp):
            self.is_told = True
            say(
                f"warning: method={self.spec.method}: in this model a norm, or experts, stand between matrices and the hidden "
                f"states; it aims those matrices at their own dense outputs"
            )

    def _run_dense(self, block: int, anatomy: Anatomy) -> torch.Tensor | None:
        """Runs the dense hidden states through the block. Returns them as they are after attention."""
        assert self.dense_NTH is not None
        if anatomy.attention is None:
            self._run(self.dense_NTH, block, None)
            return None
        middle_NTH = new_hidden_states(self.dense_NTH.shape, self.dense_NTH.dtype)
        began = time.perf_counter()
        with self._listening(anatomy.attention) as written:
            for n in range(len(middle_NTH)):
                out = self.model.run(block, self.dense_NTH[n : n + 1])[0]
                middle_NTH[n] = self.dense_NTH[n] + written().to(middle_NTH.device)
                self.dense_NTH[n] = out
                self.advance(1, f"block {block + 1} of {self.last + 1}")
        self.calibrate_s += time.perf_counter() - began
        return middle_NTH

    @contextmanager
    def _listening(self, path: str | None) -> Iterator[Callable[[], torch.Tensor]]:
        """Within the block of code the function returns what the module gave last."""
        if path is None:
            yield lambda: torch.zeros(())
            return
        last: list[torch.Tensor] = []

        def keep(_: Any, __: Any, out: torch.Tensor) -> None:
            last[:] = [out.flatten(0, -2).clone()]  # some models add to it in place

        hook = self.model.model.get_submodule(path).register_forward_hook(keep)
        try:
            yield lambda: last[0]
        finally:
            hook.remove()

    def _capture(
        self,
        block: int,
        anatomy: Anatomy,
        matrices: Sequence[Matrix],
        hidden_NTH: torch.Tensor,
        middle_NTH: torch.Tensor | None,
    ) -> Capture:
        """Returns the statistics of matrices that have the same input, from what the pruned model gives up to there."""
        present = 0
        device = self.model.device

        def bias_of(path: str) -> Any:
            bias = getattr(self.model.model.get_submodule(path), "bias", None)
            return 0.0 if bias is None else bias.float()

        def goal(path: str, wanted_NTH: Any, written: Callable[[], torch.Tensor] | None) -> torch.Tensor:
            missing_TH = (wanted_NTH[present].float() - hidden_NTH[present].float()).to(device)
            if written is not None:
                missing_TH -= written().float()
            return missing_TH - bias_of(path)

        began = time.perf_counter()
        with self._listening(anatomy.attention) as written:
            goals: dict[str, Callable[[], torch.Tensor]] = {}
            if anatomy.attention and middle_NTH is not None:
                goals[anatomy.attention] = lambda: goal(str(anatomy.attention), middle_NTH, None)
            if anatomy.mlp and self.dense_NTH is not None:
                goals[anatomy.mlp] = lambda: goal(str(anatomy.mlp), self.dense_NTH, written)
            capture = Capture(self.model, matrices, self.with_gram, goals)
            with capture.watching(stop=True):
                for present in range(len(hidden_NTH)):
                    self._run_one(hidden_NTH, block, present, capture)
        self.calibrate_s += time.perf_counter() - began
        return capture
