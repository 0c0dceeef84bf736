"""Selects the weights that stay: by magnitude or at random; per tensor, per row, in N:M groups, or by one global threshold.

Legend: O rows, I columns, B = ceil(I/8).
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lottery.kernels import bitmask, select
from lottery.kernels.rows import select_rows
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.headers import TensorInfo
from lottery.progress import progress_bar
from lottery.pruning.given import EachByItself
from lottery.pruning.reading import Budget, check_finite, stream_of
from lottery.pruning.tensors import count_to_prune, parse_nm_pattern, tensor_info, uniform_counts
from lottery.spec import Spec
from lottery.ticket.packing import matrix_bits


def draw_seed(spec: Spec, name: str) -> int | None:
    """Returns the seed of a tensor's random keys; None for a method that draws nothing."""
    if spec.method != "random":
        return None
    return int.from_bytes(hashlib.sha256(f"{spec.seed}:{name}".encode()).digest()[:8])


class Selection(EachByItself):
    """Selects which weights of a tensor stay. With `scope=global`, the constructor reads all targeted tensors twice.

    `counts` states how many weights each targeted tensor loses; without it all lose the same share. With `scope=global`
    it means nothing.
    """

    def __init__(
        self, spec: Spec, source: Source, chosen: Sequence[Place], counts: Mapping[str, int] | None = None
    ) -> None:
        self.spec = spec
        self.counts = uniform_counts(spec, source, chosen) if counts is None else counts
        self.groups = parse_nm_pattern(spec)
        self.search: select.ThresholdSearch | None = None
        if spec.scope == "global":
            self._search(source, sorted(chosen, key=lambda p: p.name))

    def _search(self, source: Source, chosen: Sequence[Place]) -> None:
        asked = count_to_prune(self.spec, sum(tensor_info(source, p).numel for p in chosen))
        zeros, search, ahead = 0, select.ThresholdSearch(0), Budget(source, chosen).ahead
        total = sum(tensor_info(source, p).nbytes for p in chosen)
        with progress_bar(f"find the threshold of {len(chosen)} tensors together", total, "bytes") as advance:
            stream = stream_of(source, chosen, ahead)
            for place in chosen:
                tensor, release = next(stream)
                zeros += check_finite(place.name, tensor_info(source, place).dtype, tensor)
                search.add(matrix_bits(tensor, place.transposed), draw_seed(self.spec, place.name))
                advance(tensor.nbytes)
                release()
                del tensor
        search.k = max(asked, zeros)
        self.sparser = 1 if zeros > asked else 0
        if search.step():
            with progress_bar("refine the threshold", total, "bytes") as advance:
                stream = stream_of(source, chosen, ahead)
                for place in chosen:
                    tensor, release = next(stream)
                    search.add(matrix_bits(tensor, place.transposed), draw_seed(self.spec, place.name))
                    advance(tensor.nbytes)
                    release()
                    del tensor
            search.step()
        self.search = search

    def mask(
        self, place: Place, info: TensorInfo, bits_OI: np.ndarray, zeros: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns a targeted tensor's bitmask_OB, and what the record says of it: how many weights the spec asks to stay.

        With `scope=global` tensors must come in the order of their names: the first ones take what remains of a tie.
        """
        seed = draw_seed(self.spec, place.name)
        if self.search:
            mask_OB = select.select_below(bits_OI, self.search.limit, self.search.ties, seed)
            ties = select.count_ties(bits_OI, self.search.limit, seed)
            self.search.ties -= min(self.search.ties, int(ties.sum()))
            return mask_OB, {"requested": int(bitmask.survivors_per_row(mask_OB).sum())}
        if self.groups:
            mask_OB = select.select_groups(bits_OI, *self.groups, seed)
            self.sparser += (
                int(bitmask.survivors_per_row(mask_OB).sum()) < info.numel // self.groups[1] * self.groups[0]
            )
            return mask_OB, {"requested": info.numel // self.groups[1] * self.groups[0]}
        asked = self.counts[place.name]
        self.sparser += zeros > asked
        of_scope = select_rows if self.spec.scope == "row" else select.select
        return of_scope(bits_OI, max(asked, zeros), seed), {"requested": info.numel - asked}
