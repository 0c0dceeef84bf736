"""Collects statistics of the inputs of a block's matrices while the block runs.

Legend: T tokens, I inputs, C experts chosen for a token.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from lottery.pruning.kept import Key
from lottery.pruning.statistics import Accumulator, Statistics
from lottery.runtime.blocks import BlockModel, Matrix, StopForwardError

Goal = Callable[[], torch.Tensor]


def key_of(matrix: Matrix) -> Key:
    return matrix.module, matrix.expert, matrix.second


class Capture:
    """Statistics of the inputs of some matrices of one block. Matrices that get the same tensor share them: q, k and v
    do, and gate and up."""

    def __init__(
        self,
        model: BlockModel,
        matrices: Sequence[Matrix],
        with_gram: bool,
        goals: Mapping[str, Goal] | None = None,
        both: bool = False,
    ) -> None:
        """`goals`: path of a module -> a function that returns the outputs that are asked of it for the present sample,
        [T, O], without its bias. `both` is that of `Accumulator`."""
        self.model, self.with_gram, self.both, self.goals = model, with_gram, both, goals or {}
        self.wanted = {key_of(m) for m in matrices}
        self.modules = {m.module for m in matrices}
        self.columns = {key_of(m): model.weight(m).shape[1] for m in matrices}
        self.sums: dict[Key, Accumulator] = {}
        self.owner: dict[Key, Key] = {}  # the matrix whose statistics another one shares
        self.seen: list[
            tuple[torch.Tensor, Key]
        ] = []  # the inputs of this sample, kept so that none is taken for another
        self.left = 0
        self.stop = False

    @contextmanager
    def watching(self, stop: bool) -> Iterator[None]:
        """Within the block of code inputs are added to the statistics. With `stop`, the forward pass of a sample ends
        as soon as every matrix has its input: the last product is then saved."""
        self.stop = stop
        hooks = [
            self.model.model.get_submodule(path).register_forward_pre_hook(self._hook(path)) for path in self.modules
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.seen.clear()

    def begin_sample(self) -> None:
        self.seen.clear()
        self.left = len(self.modules)

    def _hook(self, path: str) -> Any:
        def before(module: Any, given: tuple[Any, ...]) -> None:
            if (path, None, False) in self.wanted:
                self._add((path, None, False), given[0])
            else:
                self._add_experts(path, module, given[0].flatten(0, -2), given[1])
            self.left -= 1
            if self.stop and not self.left:
                raise StopForwardError

        return before

    def _add(self, key: Key, x: torch.Tensor) -> None:
        for earlier, owner in self.seen:
            if earlier is x:
                self.owner[key] = owner
                return
        self.seen.append((x, key))
        self.owner[key] = key
        goal = self.goals.get(key[0])
        self._sum(key, x.flatten(0, -2), goal() if goal else None)

    def _sum(self, key: Key, x_TI: torch.Tensor, goal_TO: torch.Tensor | None = None) -> None:
        if key not in self.sums:
            self.sums[key] = Accumulator(self.columns[key], self.with_gram, str(x_TI.device), self.both)
        self.sums[key].add(x_TI, goal_TO)

    def _add_experts(self, path: str, module: Any, x_TI: torch.Tensor, chosen_TC: torch.Tensor) -> None:
        """Adds to the statistics of each expert the tokens that are routed to it. The input of its second matrix is
        computed here as the module itself does it later."""
        for expert in range(module.num_experts):
            first, second = (path, expert, False), (path, expert, True)
            routed_TI = x_TI[(chosen_TC == expert).any(-1)]
            if first in self.wanted:
                self.owner[first] = first
                self._sum(first, routed_TI)
            if second in self.wanted:
                self.owner[second] = second
                self._sum(second, module._apply_gate(functional.linear(routed_TI, module.gate_up_proj[expert])))

    def merge(self, other: "Capture") -> None:
        """Adds what another capture saw in other samples."""
        self.owner |= other.owner
        for key, sums in other.sums.items():
            self.sums[key] = self.sums[key].merge(sums) if key in self.sums else sums

    def groups(self, matrices: Sequence[Matrix]) -> Iterator[tuple[Statistics, list[Matrix]]]:
        """Yields the statistics of each input with the matrices that share it; those that were used are given back."""
        shared: dict[Key, list[Matrix]] = {}
        for matrix in matrices:
            shared.setdefault(self.owner[key_of(matrix)], []).append(matrix)
        for key, group in shared.items():
            yield self.sums.pop(key).finish(), group
