"""Prunes by methods that look at data, one transformer block after the other.

For each block its statistics are collected while the calibration samples run through it, then its matrices are solved,
and the samples go on to the next block as the dense block gives them, or as the pruned one does.

Legend: N samples, T tokens of a sample, H width of the hidden states, O rows, I columns, B = ceil(I/8).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
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
from lottery.models.tensors import DTYPES
from lottery.progress import Advance, say
from lottery.pruning.capture import Capture
from lottery.pruning.hidden_states import new_hidden_states
from lottery.pruning.samples import Samples
from lottery.pruning.solving import Piece, Solver, joined
from lottery.pruning.tensors import columns_of, uniform_counts
from lottery.runtime.blocks import BlockModel, Matrix, StopForwardError
from lottery.spec import METHODS, Spec

TOLERANCE = 0.01  # by which streamed logits may differ from the model's own, relative to their size
CHECKED = 2  # samples: what leaks from one sample into the next shows only in the second
ANOTHER_METHOD = "give method=magnitude, which looks at no data"


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
        self.with_gram = METHODS[spec.method].updates
        self.sparser = 0  # number of targeted tensors that hold more zeros than the spec asks for
        self.left = len(self.places)  # tensors that were not asked for yet
        self.calibrate_s = 0.0
        self.advance: Advance = nothing
        self.done: dict[str, Piece] = {}
        compared_NT = torch.cat([self.ids_NT, self.ids_NT.roll(1, 1)])[:CHECKED]  # two, also where one is asked for
        self.model = open_blocks(source, compared_NT, samples.device)
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

    @property
    def steps(self) -> int:
        """Returns how many times a sample goes through a block, or through the head."""
        return len(self.ids_NT) * (sum(map(self.passes, range(self.last + 1))) + self.has_head)

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
        if piece.bits_OI is not None:
            np.copyto(bits_OI, piece.bits_OI)
        asked = self.counts[place.name]
        kept = int(bitmask.survivors_per_row(piece.mask_OB).sum())
        self.sparser += kept < info.numel - asked
        return piece.mask_OB, {"requested": info.numel - asked, **piece.about}

    @torch.inference_mode()
    def _solve_all(self) -> Iterator[dict[str, Piece]]:
        """Yields the pruned tensors whose matrices share their inputs, block by block, and at the end those of the head."""
        first_1TH = self.model.embed(self.ids_NT[:1])
        hidden_NTH = new_hidden_states((*self.ids_NT.shape, first_1TH.shape[-1]), self.model.dtype)
        for n in range(len(self.ids_NT)):
            hidden_NTH[n] = self.model.embed(self.ids_NT[n : n + 1])[0]
        for block in range(self.last + 1):
            self.model.load(block)
            yield from self._solve_block(block, hidden_NTH)
            self.model.unload(block)
        if self.has_head:
            yield from self._solve_head(hidden_NTH)

    def _matrices_of(self, block: int) -> list[Matrix]:
        """Returns the matrices of a block that are to be pruned."""
        return [m for place in self.places.values() if place.layer == block for m in self.model.matrices(place)]

    def _solve_block(self, block: int, hidden_NTH: torch.Tensor) -> Iterator[dict[str, Piece]]:
        matrices = self._matrices_of(block)
        is_last = block == self.last and not self.has_head
        if not matrices:
            self._run(hidden_NTH, block, None)
            return
        capture = Capture(self.model, matrices, self.with_gram)
        stops = self.goes_on_pruned or is_last  # only inputs are needed now
        with capture.watching(stops):
            self._run(hidden_NTH, block, capture)
        yield from self._solve(matrices, capture)
        if self.goes_on_pruned and not is_last:
            self._run(hidden_NTH, block, None)

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
        matrices = [m for p in self.places.values() if p.role == "lm_head" for m in self.model.matrices(p)]
        capture = Capture(self.model, matrices, self.with_gram)
        began = time.perf_counter()
        with capture.watching(stop=True):
            for n in range(len(hidden_NTH)):
                capture.begin_sample()
                with stopping():
                    self.model.finish(self.ids_NT[n : n + 1], hidden_NTH[n : n + 1], positions=self.ids_NT.shape[1])
                self.advance(1, "head")
        self.calibrate_s += time.perf_counter() - began
        yield from self._solve(matrices, capture)


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


def open_blocks(source: Source, ids_NT: torch.Tensor, device: str) -> BlockModel:
    """Returns the model, block by block, after a comparison of its streamed logits with those of its own forward pass.

    It computes in the source's own type; a float16 model whose hidden states overflow computes in bfloat16. Raises
    InputError where the logits differ.
    """
    own = str(DTYPES[source.dtype]).removeprefix("torch.")
    for dtype in dict.fromkeys([own, "bfloat16"] if own == "float16" else [own]):
        model = BlockModel(source, source.places, dtype, device)
        if check_streaming(model, ids_NT):
            if dtype != own:
                say("the hidden states of this model overflow in float16; the calibration computes in bfloat16")
            return model
    raise InputError(f"{model.name}: its hidden states are not finite; {ANOTHER_METHOD}")


@torch.inference_mode()
def check_streaming(model: BlockModel, ids_NT: torch.Tensor) -> bool:
    """Compares the logits of samples that go through the blocks one by one with those of the model's own forward pass.

    Returns whether all are finite. Raises InputError where they differ: the arguments of the blocks are then not the
    same for all samples.
    """
    samples = [ids_NT[n : n + 1] for n in range(len(ids_NT))]
    own = [model.record(ids_1T) for ids_1T in reversed(samples)][::-1]  # the arguments of the first sample stay
    hidden = [model.embed(ids_1T) for ids_1T in samples]
    for block in range(model.layers):
        model.load(block)
        hidden = [model.run(block, hidden_1TH) for hidden_1TH in hidden]
        model.unload(block)
    for n, (ids_1T, hidden_1TH, own_logits) in enumerate(zip(samples, hidden, own, strict=True)):
        logits = model.finish(ids_1T, hidden_1TH)
        if not (logits.isfinite().all() and own_logits.isfinite().all()):
            return False
        gap = (logits.float() - own_logits.float()).norm() / own_logits.float().norm()
        if gap > TOLERANCE:
            raise InputError(
                f"{model.name}: the blocks of {type(model.model).__name__} give other logits one by one than together "
                f"(sample {n}, {gap:.0%} off), so that data cannot be looked at block by block; {ANOTHER_METHOD}"
            )
    return True
