"""Prunes by methods that look at data, one transformer block after the other.

For each block its statistics are collected while the calibration samples run through it, then its matrices are solved,
and the samples go on to the next block as the dense block gives them, or as the pruned one does. What dense blocks gave is
kept for later runs, which need no sample then.

Legend: N samples, T tokens of a sample, H width of the hidden states, O rows, I columns, B = ceil(I/8).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lottery.errors import InputError
from lottery.kernels import bitmask
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.headers import TensorInfo
from lottery.progress import Advance
from lottery.pruning.capture import Capture, key_of
from lottery.pruning.hidden_states import new_hidden_states
from lottery.pruning.kept import SAMPLES, KeptSums
from lottery.pruning.samples import Samples
from lottery.pruning.solving import Piece, Solver, joined
from lottery.pruning.streaming import ANOTHER_METHOD, open_blocks
from lottery.pruning.tensors import columns_of, uniform_counts
from lottery.runtime.blocks import BlockModel, Matrix, StopForwardError
from lottery.spec import METHODS, Spec

CHECKED = 2  # samples: what leaks from one sample into the next shows only in the second


def in_block_order(source: Source, places: Sequence[Place]) -> list[Place]:
    """Returns the tensors in the order in which they can be written: embeddings, the blocks in turn, the head.

    Within a block, matrices of many columns come last: when the largest Gram matrix has its turn, it is the only one.
    """

    def key(place: Place) -> tuple[int, int, int, str]:
        if place.layer is None:
            return (2 if place.role == "lm_head" else 0), 0, 0, ""
        return 1, place.layer, columns_of(place, source.info(place.name)), place.name

    return sorted(places, key=key)


class CalibratedSelection:
    """Selects the weights that stay, as `Selection` does, by a method that looks at data.

    Samples go through a block when its first tensor is asked for, and matrices that share their inputs are solved
    together, so that the tensors must come as `in_block_order` puts them.
    """

    def __init__(
        self,
        spec: Spec,
        source: Source,
        chosen: Sequence[Place],
        samples: Samples,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """`counts` states how many weights each tensor loses; without it all lose the same share."""
        self.spec, self.source, self.samples = spec, source, samples
        self.counts = uniform_counts(spec, source, chosen) if counts is None else counts
        self.places = {p.name: p for p in in_block_order(source, chosen)}
        self.ids_NT = torch.from_numpy(samples.ids_NT)
        self.goes_on_pruned = samples.calibration.propagate == "pruned"
        self.with_gram = METHODS[spec.method].gram
        self.sparser = 0  # number of targeted tensors that hold more zeros than the spec asks for
        self.left = len(self.places)  # tensors that were not asked for yet
        self.calibrate_s = 0.0
        self.advance: Advance = nothing
        self.done: dict[str, Piece] = {}
        compared_NT = torch.cat([self.ids_NT, self.ids_NT.roll(1, 1)])[:CHECKED]  # two, also where one is asked for
        self.model = open_blocks(source, compared_NT, samples.device, self._find_kept)
        self.solver = Solver(spec, source, self.places, self.model, self.counts)
        self.pieces = self._solve_all()

    def show(self, advance: Advance) -> Advance:
        """Takes the function that counts samples; returns the one that counts bytes, which here shows nothing."""
        self.advance = advance
        return nothing

    @property
    def has_head(self) -> bool:
        return any(p.role == "lm_head" for p in self.places.values())

    @cached_property
    def last(self) -> int:
        """Returns the last block that must run."""
        if self.has_head:
            return self.model.layers - 1
        return max(p.layer for p in self.places.values() if p.layer is not None)

    def _find_kept(self, model: BlockModel) -> bool:
        """Looks for what earlier runs kept of this model's inputs. Returns whether it is enough, so that no sample must
        run."""
        self.model = model
        self.kept = (
            None
            if self.goes_on_pruned
            else KeptSums(self.source, self.ids_NT, model.dtype, self.samples.device, self.with_gram)
        )
        parts = {
            block: self._matrices_of(block) for block in [*range(self.last + 1), *([None] if self.has_head else [])]
        }
        self.pruned_parts = sum(map(bool, parts.values()))
        self.absent = {
            block
            for block, matrices in parts.items()
            if matrices and not (self.kept and self.kept.holds(part_name(block), [key_of(m) for m in matrices]))
        }
        return not self.absent

    @property
    def last_to_run(self) -> int:
        """Returns the last block through which the samples must go, -1 where none must."""
        if None in self.absent:
            return self.last
        return max((block for block in self.absent if block is not None), default=-1)

    @property
    def steps(self) -> int:
        """Returns how many times a sample goes through a block, or through the head; where none must, how many parts are
        solved."""
        if not self.absent:
            return self.pruned_parts
        return len(self.ids_NT) * (sum(map(self.passes, range(self.last_to_run + 1))) + (None in self.absent))

    def passes(self, block: int) -> int:
        """Returns how many times the samples go through a block."""
        goes_on = block != self.last or self.has_head
        return 2 if self.goes_on_pruned and goes_on and self._matrices_of(block) else 1

    def prepare(self, place: Place) -> None:
        """Solves what comes before a targeted tensor, and the tensor."""
        while place.name in self.places and place.name not in self.done:
            self.done |= next(self.pieces)

    def mask(
        self, place: Place, info: TensorInfo, bits_OI: np.ndarray, zeros: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns a targeted tensor's bitmask_OB, and what the record says of it. Writes its new weights into `bits_OI`."""
        self.prepare(place)
        piece = self.done.pop(place.name)
        self.left -= 1
        if not self.left:
            self.solver.warn()
            self._let_go()
        if piece.bits_OI is not None:
            np.copyto(bits_OI, piece.bits_OI)
        asked = self.counts[place.name]
        kept = int(bitmask.survivors_per_row(piece.mask_OB).sum())
        self.sparser += kept < info.numel - asked
        return piece.mask_OB, {"requested": info.numel - asked, **piece.about}

    @torch.inference_mode()
    def _solve_all(self) -> Iterator[dict[str, Piece]]:
        """Yields the pruned tensors whose matrices share their inputs, block by block, and at the end those of the head."""
        hidden_NTH = self._embed() if self.absent else torch.empty(0)
        for block in range(self.last + 1):
            if block <= self.last_to_run or self._matrices_of(block):
                self.model.load(block)
                yield from self._solve_block(block, hidden_NTH)
                self.model.unload(block)
                self._count_part(f"block {block + 1} of {self.last + 1}")
        if self.has_head:
            yield from self._solve_head(hidden_NTH)
            self._count_part("head")
        self._let_go()

    def _count_part(self, note: str) -> None:
        """Moves the bar where no samples do."""
        if not self.absent:
            self.advance(1, note)

    def _let_go(self) -> None:
        """Lets other runs remove what was kept for this one."""
        if self.kept:
            self.kept.in_use.close()

    def _embed(self) -> torch.Tensor:
        """Returns the hidden states that the first block gets."""
        first_1TH = self.model.embed(self.ids_NT[:1])
        hidden_NTH = new_hidden_states((*self.ids_NT.shape, first_1TH.shape[-1]), self.model.dtype)
        for n in range(len(self.ids_NT)):
            hidden_NTH[n] = self.model.embed(self.ids_NT[n : n + 1])[0]
        return hidden_NTH

    def _matrices_of(self, block: int | None) -> list[Matrix]:
        """Returns the matrices of a block, or of the head (None), that are to be pruned."""
        if block is None:
            return [m for p in self.places.values() if p.role == "lm_head" for m in self.model.matrices(p)]
        return [m for place in self.places.values() if place.layer == block for m in self.model.matrices(place)]

    def _solve_block(self, block: int, hidden_NTH: torch.Tensor) -> Iterator[dict[str, Piece]]:
        matrices = self._matrices_of(block)
        is_last = block == self.last_to_run and None not in self.absent
        if block in self.absent:
            stops = self.goes_on_pruned or is_last  # only inputs are needed now
            capture = self._collect(block, matrices, stops, lambda chunk, c: self._run(hidden_NTH[chunk], block, c))
        elif block <= self.last_to_run:
            self._run(hidden_NTH, block, None)
        if not matrices:
            return
        if block not in self.absent:
            capture = self._read_kept(block, matrices)
        yield from self._solve(matrices, capture)
        if self.goes_on_pruned and not is_last:
            self._run(hidden_NTH, block, None)

    def _collect(
        self, block: int | None, matrices: Sequence[Matrix], stops: bool, run: Callable[[slice, Capture], None]
    ) -> Capture:
        """Returns the sums over all samples of the inputs of a block or of the head (None). `run` lets some samples run.

        What is kept are sums over a few samples; so that the bits are the same with and without it, these are summed
        apart in every run.
        """
        count = SAMPLES if self.kept else len(self.ids_NT)
        whole = Capture(self.model, matrices, self.with_gram)
        for chunk, first in enumerate(range(0, len(self.ids_NT), count)):
            capture = Capture(self.model, matrices, self.with_gram, both=self.kept is not None)
            with capture.watching(stops):
                run(slice(first, first + count), capture)
            if self.kept:
                self.kept.keep(part_name(block), chunk, capture.sums, capture.owner, self.pruned_parts)
            whole.merge(capture)
        return whole

    def _read_kept(self, block: int | None, matrices: Sequence[Matrix]) -> Capture:
        assert self.kept is not None
        capture = Capture(self.model, matrices, self.with_gram)
        capture.sums, capture.owner = self.kept.read(part_name(block))
        return capture

    def _run(self, hidden_NTH: torch.Tensor, block: int, capture: Capture | None) -> None:
        """Runs all samples through a block that is loaded, and puts what it gives in the place of what it got."""
        began = time.perf_counter()
        for n in range(len(hidden_NTH)):
            self._run_one(hidden_NTH, block, n, capture)
        self.calibrate_s += time.perf_counter() - began

    def _run_one(self, hidden_NTH: torch.Tensor, block: int, n: int, capture: Capture | None) -> None:
        if capture:
            capture.begin_sample()
        with stopping():
            after_TH = self.model.run(block, hidden_NTH[n : n + 1])[0]
            if not is_finite(after_TH):
                raise InputError(
                    f"{self.model.name}: its hidden states are not finite after block {block + 1}; {ANOTHER_METHOD}"
                )
            hidden_NTH[n] = after_TH
        self.advance(1, f"block {block + 1} of {self.last + 1}")

    def _solve(self, matrices: Sequence[Matrix], capture: Capture) -> Iterator[dict[str, Piece]]:
        """Yields every tensor with the last of its matrices. Statistics are given back as soon as they were used."""
        pieces: dict[str, dict[int, Piece]] = {}
        for statistics, group in capture.groups(matrices):
            for matrix in group:
                piece = self.solver.solve(matrix, statistics, self.goes_on_pruned)
                pieces.setdefault(matrix.name, {})[matrix.expert or 0] = piece
            del statistics
            whole = [m.name for m in group if len(pieces.get(m.name, ())) == m.of]
            yield {name: joined(pieces.pop(name)) for name in dict.fromkeys(whole)}

    def _solve_head(self, hidden_NTH: torch.Tensor) -> Iterator[dict[str, Piece]]:
        """Solves the head, whose inputs are what the last norm gives."""
        matrices = self._matrices_of(None)

        def run(chunk: slice, capture: Capture) -> None:
            began = time.perf_counter()
            for ids_T, hidden_TH in zip(self.ids_NT[chunk], hidden_NTH[chunk], strict=True):
                capture.begin_sample()
                with stopping():
                    self.model.finish(ids_T[None], hidden_TH[None], positions=len(ids_T))
                self.advance(1, "head")
            self.calibrate_s += time.perf_counter() - began

        capture = self._collect(None, matrices, True, run) if None in self.absent else self._read_kept(None, matrices)
        yield from self._solve(matrices, capture)


def part_name(block: int | None) -> str:
    """Returns the name under which the sums of a block, or of the head (None), are kept."""
    return "head" if block is None else f"block-{block}"


def is_finite(x: torch.Tensor) -> bool:
    """Returns whether all numbers are finite. The extremes of a tensor that holds a NaN are NaN, and they are found in a
    thirtieth of the time of isfinite()."""
    return all(bool(extreme.isfinite()) for extreme in x.aminmax())


def nothing(amount: float = 1, note: str = "") -> None:
    """Shows no progress."""


@contextmanager
def stopping() -> Iterator[None]:
    """Ends the block of code where a capture has all that it wants."""
    try:
        yield
    except StopForwardError:
        return
