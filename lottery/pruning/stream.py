"""Prunes the shards of a model into the shards of a ticket. A whole model is never in memory.

While one tensor is selected, earlier tensors are packed, hashed and written, and later ones are read.

Legend: O rows, I columns, B = ceil(I/8).
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lottery.files.atomic import atomic_write
from lottery.files.hashes import file_sha256
from lottery.files.reading import read_json
from lottery.kernels import quantizing, select
from lottery.kernels.rows import select_rows
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.headers import TensorInfo
from lottery.models.tensors import FLOAT_BITS
from lottery.progress import Advance, progress_bar, say
from lottery.pruning.allocation import Allocation, decide, resolve_allocation
from lottery.pruning.given import GivenSelection, SolvedSelection
from lottery.pruning.reading import Budget, check_finite, stream_of
from lottery.pruning.samples import Samples
from lottery.pruning.selection import Selection, draw_seed
from lottery.pruning.tensors import all_places, columns_of, tensor_entry, tensor_info, to_quantize
from lottery.spec import FORMAT_VERSION, METHODS, Spec, short_base, ticket_id
from lottery.ticket.packing import (
    PackedPart,
    Writer,
    matrix_bits,
    pack_mask,
    pack_pruned,
    pack_quantized,
    pack_unchanged,
    sha256_of,
    tensor_bytes,
)
from lottery.ticket.record import header_sha256, sparsities, write_record
from lottery.ticket.stored import StoredTicket

PACKERS = 2  # tensors that are packed and hashed at once
Unfinished = deque[tuple[int, Future[None]]]  # (bytes, write) of each tensor that is not yet on disk


def prune_source(
    source: Source,
    spec: Spec,
    chosen: Sequence[Place],
    folder: Path,
    allocation: Allocation | None = None,
    title: str | None = None,
    samples: Samples | None = None,
    solved: StoredTicket | None = None,
) -> float:
    """Writes the ticket that `spec` makes of `source` into the empty `folder`. The chosen places lose weights.

    `allocation` says how many each loses, if not that of the spec; `title` names the progress bar; what looks at data
    needs `samples`. `solved` is the same ticket without 8 bits, if it was made before: its survivors and values are taken,
    and no sample runs. Returns the seconds that the samples took to go through the blocks. Raises InputError where the
    source holds NaN or infinity, and for a model whose blocks cannot be run one by one.
    """
    title = title or f"prune {spec.target} to {100 * spec.sparsity:g}% by {spec.method}"
    allocation = allocation or resolve_allocation(spec, source, chosen)
    counts, looked_s = (None, 0.0) if solved else decide(allocation, spec, source, chosen, samples)
    places, selection, bar = open_selection(source, spec, chosen, counts, title, samples, solved)
    groups = group_tensors(source, spec, chosen)
    writer = Writer(folder, parts_of_all(source, spec, places, groups))
    entries = write_tensors(source, spec, places, groups, selection, writer, bar)
    warn_if_sparser(spec, chosen, selection, entries)
    write_rest(source, spec, chosen, entries, folder, allocation, samples)
    return looked_s + selection.calibrate_s


class Selector(Protocol):
    """Selects which weights stay, tensor by tensor: a `Selection`, a `CalibratedSelection`, or what was decided before."""

    sparser: int  # number of targeted tensors that hold more zeros than the spec asks for
    calibrate_s: float

    def show(self, advance: Advance) -> Advance:
        """Takes the function that moves the progress bar. Returns the one that counts the bytes of written tensors."""

    def prepare(self, place: Place) -> None:
        """Does what takes much memory for a tensor, before the tensor is read."""

    def mask(
        self, place: Place, info: TensorInfo, bits_OI: np.ndarray, zeros: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns a targeted tensor's bitmask_OB, and what the record says of it. May change the weights in `bits_OI`."""


def open_selection(
    source: Source,
    spec: Spec,
    chosen: Sequence[Place],
    counts: Mapping[str, int] | None,
    title: str,
    samples: Samples | None,
    solved: StoredTicket | None,
) -> tuple[list[Place], Selector, AbstractContextManager[Advance]]:
    """Returns all tensors in the order in which they are written, what selects their weights, and a progress bar."""
    places = all_places(source, chosen)
    total = sum(tensor_info(source, p).nbytes for p in places)
    if solved:
        from lottery.pruning.calibrated import in_block_order  # this needs transformers

        return in_block_order(source, places), SolvedSelection(solved), progress_bar(title, total, "bytes")
    if spec.is_calibrated:
        from lottery.pruning.calibrated import CalibratedSelection, in_block_order  # these need transformers
        from lottery.pruning.repairing import InOrderSelection

        assert samples, "a method that looks at data gets samples"
        with progress_bar(f"compare the blocks of {short_base(source.base_record['id'])} with the whole model"):
            selection_class = InOrderSelection if METHODS[spec.method].in_order else CalibratedSelection
            calibrated = selection_class(spec, source, chosen, samples, counts)
        return in_block_order(source, places), calibrated, progress_bar(title, calibrated.steps)
    if METHODS[spec.method].trained:
        return places, GivenSelection(source), progress_bar(title, total, "bytes")
    if spec.scope == "global":
        places = sorted(places, key=lambda p: p.name)  # ties are broken in this order
    selection = Selection(spec, source, chosen, counts)
    return places, selection, progress_bar(title, total, "bytes")


@dataclass(frozen=True)
class TensorGroups:
    """Names of tensors, by what happens to them."""

    targeted: set[str]  # they lose weights now
    masked: set[str]  # they are stored with a mask: the targeted ones, and those that an earlier ticket pruned
    in_8_bits: set[str]


def group_tensors(source: Source, spec: Spec, chosen: Sequence[Place]) -> TensorGroups:
    """Returns which tensors lose weights, have a mask, and are stored in 8 bits."""
    targeted = {p.name for p in chosen}
    masked = targeted | {p.name for p in source.places if source.kept(p.name) is not None}
    return TensorGroups(targeted, masked, to_quantize(source, spec, chosen))


def parts_of_all(
    source: Source, spec: Spec, places: Sequence[Place], groups: TensorGroups
) -> list[tuple[str, str, Sequence[int]]]:
    """Returns the parts that the writer reserves space for, of all tensors."""
    return [
        part
        for p in places
        for part in parts_of(spec, p, tensor_info(source, p), p.name in groups.masked, p.name in groups.in_8_bits)
    ]


def write_tensors(
    source: Source,
    spec: Spec,
    places: Sequence[Place],
    groups: TensorGroups,
    selection: Selector,
    writer: Writer,
    bar: AbstractContextManager[Advance],
) -> dict[str, dict[str, Any]]:
    """Reads, selects, packs and writes one tensor after the other. Returns what the record says of each."""
    entries: dict[str, dict[str, Any]] = {}
    packers, appender = ThreadPoolExecutor(PACKERS, "lottery-pack"), ThreadPoolExecutor(1, "lottery-put")
    budget = Budget(source, places, spec.is_calibrated)
    stream = stream_of(source, places, budget.ahead)
    with closing(writer), packers, appender, closing(stream), bar as advance:
        unfinished: Unfinished = deque()
        count = selection.show(advance)
        for i, place in enumerate(places):
            selection.prepare(place)
            info, (tensor, release) = tensor_info(source, place), next(stream)
            remove_finished(unfinished)
            entry = entries[place.name] = new_entry(source, place, info)
            bits_OI, mask_OB, zeros = select_survivors(place, info, tensor, groups, selection, entry)
            kind = spec.quantize if place.name in groups.in_8_bits else "none"
            packing = packers.submit(pack, source, spec, place, info, tensor, bits_OI, mask_OB, zeros, kind)
            unfinished.append((info.nbytes, appender.submit(write_packed, writer, packing, entry, release)))
            del tensor, bits_OI, mask_OB, packing  # the threads hold them for as long as they need them
            count(info.nbytes)
            next_bytes = tensor_info(source, places[i + 1]).nbytes if i + 1 < len(places) else 0
            wait_for_memory(unfinished, next_bytes, budget.unfinished)
        writer.finish()
    return entries


def remove_finished(unfinished: Unfinished) -> None:
    """Removes finished tensors from the front of the queue. Raises the error of a tensor that failed."""
    while unfinished and unfinished[0][1].done():
        unfinished.popleft()[1].result()


def wait_for_memory(unfinished: Unfinished, next_bytes: int, limit: int) -> None:
    """Waits until the next tensor fits into `limit` bytes with the unfinished ones; after the last, for all."""
    while unfinished and (not next_bytes or sum(nbytes for nbytes, _ in unfinished) + next_bytes > limit):
        unfinished.popleft()[1].result()


def new_entry(source: Source, place: Place, info: TensorInfo) -> dict[str, Any]:
    """Returns the beginning of what the record says of a tensor."""
    entry = tensor_entry(place, info)
    if (original := source.original_name(place.copy_of or place.name)) != place.name:
        entry["copy_of"] = original
    return entry


def select_survivors(
    place: Place,
    info: TensorInfo,
    tensor: torch.Tensor,
    groups: TensorGroups,
    selection: Selector,
    entry: dict[str, Any],
) -> tuple[np.ndarray | None, np.ndarray | None, int]:
    """Returns the tensor's bits [O, I] and its bitmask [O, B], each None where it is not needed, and its number of
    zeros.

    For a targeted tensor, `entry` gets what the selection says of it.
    """
    zeros = check_finite(place.name, info.dtype, tensor)
    if place.name not in groups.masked | groups.in_8_bits:
        return None, None, zeros
    bits_OI, mask_OB = matrix_bits(tensor, place.transposed), None
    if place.name in groups.targeted:
        mask_OB, more = selection.mask(place, info, bits_OI, zeros)
        entry |= more
    elif place.name in groups.masked:
        mask_OB = select.select(bits_OI, zeros)  # an earlier ticket removed these weights
    return bits_OI, mask_OB, zeros


def warn_if_sparser(
    spec: Spec,
    chosen: Sequence[Place],
    selection: Selector,
    entries: Mapping[str, Mapping[str, Any]],
) -> None:
    """Warns where the source had more zeros than the sparsity asks for. A sparsity of 0 asks for none: the zeros that
    trained weights happen to hold are then no news."""
    if not selection.sparser or not spec.sparsity:
        return
    which = (
        "the targeted tensors together"
        if spec.scope == "global"
        else f"{selection.sparser} of {len(chosen)} targeted tensors"
    )
    say(
        f"warning: {which} hold more zeros than asked for and keep them: "
        f"the target is {sparsities({'tensors': entries})['sparsity_target']:.2%} zeros"
    )


def parts_of(
    spec: Spec, place: Place, info: TensorInfo, masked: bool, in_8_bits: bool
) -> list[tuple[str, str, Sequence[int]]]:
    """Returns the parts as which a tensor may be stored (key, type, shape), so that the writer can reserve space."""
    dtype = quantizing.QUANTIZED_DTYPES[spec.quantize][0] if in_8_bits else info.dtype
    mask, values = (f"{place.name}.bitmask", "U8", info.shape), (f"{place.name}.values", dtype, info.shape)
    scale = (f"{place.name}.scale", "F32", (info.numel // columns_of(place, info),))
    if spec.storage == "mask":
        return [mask] if masked else []
    if in_8_bits:
        return [mask, values, scale]
    return [mask, values] if masked else [(place.name, info.dtype, info.shape)]


def pack(
    source: Source,
    spec: Spec,
    place: Place,
    info: TensorInfo,
    tensor: torch.Tensor,
    bits_OI: np.ndarray | None,
    mask_OB: np.ndarray | None,
    zeros: int,
    kind: str,
) -> tuple[dict[str, Any], list[PackedPart]]:
    """Returns what completes a tensor's entry, and its parts as `storage` and `quantize` ask for them."""
    if spec.storage == "mask":
        original = source.original(place.copy_of or place.name)
        if mask_OB is None:
            return {"sha256": sha256_of(tensor_bytes(original))}, []
        return pack_mask(place, original, mask_OB)
    if kind != "none" and bits_OI is not None:
        return pack_quantized(place, info, tensor, bits_OI, mask_OB, zeros, kind)
    if mask_OB is None or bits_OI is None:
        return pack_unchanged(place.name, info.dtype, tensor)
    return pack_pruned(place, info, tensor, bits_OI, mask_OB)


def write_packed(
    writer: Writer,
    packing: Future[tuple[dict[str, Any], list[PackedPart]]],
    entry: dict[str, Any],
    release: Callable[[], None],
) -> None:
    """Writes one packed tensor into the ticket. A single thread does this, in the order of submission."""
    try:
        more, parts = packing.result()
        for part in parts:
            writer.add(*part)
        entry |= more
    finally:  # otherwise the reader would wait for ever
        release()


def write_rest(
    source: Source,
    spec: Spec,
    chosen: Sequence[Place],
    entries: dict[str, dict[str, Any]],
    folder: Path,
    allocation: Allocation,
    samples: Samples | None = None,
) -> None:
    """Writes the small files, and the record last."""
    for name in source.small_files:
        shutil.copyfile(source.folder / name, folder / name)
    if any(p.copy_of for p in chosen):
        atomic_write(folder / "config.json", untied(read_json(folder / "config.json")))
    looked_at = (samples.calibration.identity if samples else {}) | allocation.identity
    names = [p.name for p in chosen]
    write_record(
        folder,
        {
            "format": FORMAT_VERSION,
            "ticket": ticket_id(spec, source.base_record["files"], names, source.ticket, looked_at),
            "spec": spec.identity_params() | looked_at,
            "base": source.base_record,
            **({"source": source.ticket} if source.ticket else {}),
            **({"updated": True} if METHODS[spec.method].updates or source.has_new_values else {}),
            **({"samples": samples.sha256} if samples else {}),
            "layers": sorted({p.layer for p in chosen if p.layer is not None}),
            "tensors": entries,
            "dropped": source.dropped,
            "files": {name: file_sha256(folder / name) for name in source.small_files},
            "shards": {path.name: header_sha256(path) for path in sorted(folder.glob("ticket-*.safetensors"))},
        },
    )


def untied(config: dict[str, Any]) -> bytes:
    """Returns config.json of a model whose head has a matrix of its own."""
    config["tie_word_embeddings"] = False
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = False
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def warm_up(source: Source, spec: Spec, chosen: Sequence[Place]) -> None:
    """Compiles the kernels before anything is timed."""
    for dtype in {tensor_info(source, p).dtype for p in chosen}:
        integer = np.dtype(str(FLOAT_BITS[dtype][0]).removeprefix("torch."))
        select.compile_kernels(integer)
        if spec.scope == "row":
            select_rows(np.zeros((2, 8), integer), 1, draw_seed(spec, ""))
        if spec.quantize != "none":
            quantizing.quantize(np.zeros((2, 8), integer), None, dtype, spec.quantize)
