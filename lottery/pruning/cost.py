"""Says beforehand how much memory a method that looks at data takes, from the shapes of the tensors alone.

Legend: N samples, T tokens of a sample, H width of the hidden states, O rows, I columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.tensors import DTYPES
from lottery.pruning import hidden_states, least_squares
from lottery.pruning.kept import SAMPLES
from lottery.pruning.tensors import all_places, columns_of, tensor_info
from lottery.runtime.experts import NAME, PROJECTIONS
from lottery.spec import METHODS, Spec

LIBRARIES = 700 * 10**6  # bytes of a process that has imported all that it needs, with what the libraries keep
FACTORIZED = ("sparsegpt",)  # methods that factorize a Gram matrix, in float64
ADMM = 12  # matrices of the weight's shape that alps holds at once, in float32
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of one module
CHUNKS = 8 + least_squares.ORTHOGONAL  # matrices of some rows that conjugate gradients hold at once
FLOAT, DOUBLE = 4, 8  # bytes


@dataclass(frozen=True)
class Text:
    """How much a method looks at: `nsamples` samples of `seqlen` tokens."""

    nsamples: int
    seqlen: int
    propagate: str


@dataclass(frozen=True)
class Group:
    """Matrices of one block that get the same input, [rows, columns] each. Of experts there are `count` such groups, and
    each gets the `share` of the tokens."""

    columns: int
    rows: tuple[int, ...]
    count: int = 1
    share: float = 1.0

    @property
    def numel(self) -> int:
        return self.columns * sum(self.rows) * self.count

    @property
    def gram_bytes(self) -> int:
        return FLOAT * self.columns**2 * self.count


def groups_of(source: Source, places: Sequence[Place], active: int) -> list[Group]:
    """Returns the matrices of one block, or the head, by their inputs: those of few columns first, as they are solved.

    Only a run shows which matrices share an input. Those of q, k and v do, and gate and up, in every family that has
    them; others are counted as if they did not, so that the plan is rather too large. `active` is the number of experts
    that get a token.
    """
    found: dict[tuple[str, str], dict[str, Group]] = {}
    experts: dict[tuple[str, str], set[str]] = {}
    for place in sorted(places, key=lambda p: p.name):
        info = tensor_info(source, place)
        columns = columns_of(place, info)
        rows, count = info.numel // columns, 1
        module, _, own = place.name.removesuffix(".weight").rpartition(".")
        if name := NAME.fullmatch(place.name):
            module, own = f"{name[1]}.experts", PROJECTIONS.get(name[3], name[3])
            key = module, "second" if own == "down_proj" else "first"
            experts.setdefault(key, set()).add(name[2] or "all")
            if not name[2]:
                rows, count = rows // info.shape[0], info.shape[0]
        else:
            key = module, next((names[0] for names in SAME_INPUT if own in names), own)
        found.setdefault(key, {})[own] = Group(columns, (rows,), count)
    groups = []
    for key, of in found.items():
        one = next(iter(of.values()))
        count = max(one.count, len(experts.get(key, ())))
        share = min(1.0, active / count) if key in experts else 1.0
        groups.append(Group(one.columns, tuple(r for g in of.values() for r in g.rows), count, share))
    return sorted(groups, key=lambda g: g.columns)


@dataclass(frozen=True)
class Bytes:
    """The memory (bytes) at the moment when the most is in use, by what lies in it."""

    libraries: int
    weights: int = 0  # of a block that cannot be mapped from a file, and new ones of it
    gram: int = 0
    hidden_states: int = 0
    solving: int = 0  # buffers of the method, or of the forward pass of a sample

    @property
    def total(self) -> int:
        return self.libraries + self.weights + self.gram + self.hidden_states + self.solving


def active_experts(config: Any) -> int:
    """Returns how many experts of a block get a token; 1 for a model without experts."""
    return getattr(config, "num_experts_per_tok", None) or 1


def peak(source: Source, spec: Spec, chosen: Sequence[Place], text: Text, config: Any) -> Bytes:
    """Returns the memory of a calibrated method at its peak. `config` is that of the model's text part.

    It is the largest of three kinds of moments: a sample goes through a block, a matrix is solved, a tensor is written.
    """
    itemsize, active = DTYPES[source.dtype].itemsize, active_experts(config)
    states = text.nsamples * text.seqlen * config.hidden_size * itemsize
    states = 0 if hidden_states.lies_in_file(states) else states * (3 if METHODS[spec.method].in_order else 1)
    moments = [writing(source, spec, chosen, states)]
    for part in parts_of(chosen):
        groups = groups_of(source, part, active)
        mapped = read_bytes(source, part)
        moments.append(passing(spec, groups, text, itemsize, mapped, states))
        moments += solving(spec, groups, text, itemsize, mapped, states)
    return max(moments, key=lambda m: m.total)


def writing(source: Source, spec: Spec, chosen: Sequence[Place], states: int) -> Bytes:
    """Returns the memory while the largest tensor is packed: a copy of it, and its new weights."""
    targeted = {p.name for p in chosen} if METHODS[spec.method].updates else set()
    largest = max(tensor_info(source, p).nbytes * (1 + (p.name in targeted)) for p in all_places(source, chosen))
    return Bytes(LIBRARIES, hidden_states=states, solving=largest)


def parts_of(chosen: Sequence[Place]) -> list[list[Place]]:
    """Returns the targeted tensors of each block, and those of the head."""
    found: dict[int | None, list[Place]] = {}
    for place in chosen:
        found.setdefault(place.layer, []).append(place)
    return list(found.values())


def read_bytes(source: Source, places: Sequence[Place]) -> int:
    """Returns the bytes of those weights of a block that are copied into memory: a ticket's packed ones, and experts that
    lie apart in the files. All others are mapped."""
    return sum(tensor_info(source, p).nbytes for p in places if is_read(source, p))


def is_read(source: Source, place: Place) -> bool:
    expert = NAME.fullmatch(place.name)
    return source.kept(place.copy_of or place.name) is not None or bool(expert and expert[2])


def passing(spec: Spec, groups: Sequence[Group], text: Text, itemsize: int, read: int, states: int) -> Bytes:
    """Returns the memory while a sample goes through a block: all its Gram matrices, and what its layers give.

    The library of products may turn a weight around, in a copy.
    """
    outputs = sum(sum(g.rows) for g in groups)
    largest = max(max(g.rows) * g.columns for g in groups)
    passed = text.seqlen * (itemsize * 2 * outputs + FLOAT * max(g.columns for g in groups)) + itemsize * largest
    sums = 2 if text.propagate == "dense" and text.nsamples > SAMPLES else 1  # those of the present samples, and of all
    return Bytes(LIBRARIES, read, sums * gram_bytes(spec, groups), states, passed)


def gram_bytes(spec: Spec, groups: Sequence[Group]) -> int:
    if not METHODS[spec.method].gram:  # norms are enough
        return sum(FLOAT * g.columns * g.count for g in groups)
    if METHODS[spec.method].in_order:  # one input after the other, perhaps with the outputs that are asked for
        return max(g.gram_bytes + FLOAT * g.columns * max(g.rows) for g in groups)
    return sum(g.gram_bytes for g in groups)


def solving(spec: Spec, groups: Sequence[Group], text: Text, itemsize: int, read: int, states: int) -> list[Bytes]:
    """Returns the memory while the widest matrix of each group is solved. The Gram matrices of groups that were solved
    are given back; their new weights stay in the model where the next block shall see what they give."""
    moments = []
    new = 0
    for i, group in enumerate(groups):
        rows = max(group.rows)
        buffers = method_bytes(spec, rows, group.columns, itemsize)
        waiting = itemsize * (group.numel - rows * group.columns) if METHODS[spec.method].updates else 0
        here = groups[i : i + 1] if METHODS[spec.method].in_order else groups[i:]
        moments.append(Bytes(LIBRARIES, read + new + waiting, gram_bytes(spec, here), states, buffers))
        new += itemsize * group.numel if text.propagate == "pruned" else 0
    return moments


def method_bytes(spec: Spec, rows: int, columns: int, itemsize: int) -> int:
    """Returns the buffers that a method needs for one matrix: scores in float32 and flags, then new weights and flags,
    and what it computes with."""
    numel = rows * columns
    choosing = numel * (FLOAT + max(itemsize, 2))
    result = numel * (itemsize + 1)
    if spec.method in FACTORIZED:
        return DOUBLE * columns**2 + result + FLOAT * numel
    if spec.method == "swaps":  # scaled weights, what they gave, and flags of both
        return result + numel * (3 * FLOAT + 2)
    if spec.method in ("alps", "repair"):
        return FLOAT * columns**2 + result + ADMM * FLOAT * numel
    chunks = CHUNKS * least_squares.CHUNK_BYTES if METHODS[spec.method].updates else numel
    return max(choosing, result + min(chunks, CHUNKS * FLOAT * numel))
