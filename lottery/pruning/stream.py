"""Prunes the shards of a model into the shards of a ticket. A whole model is never in memory.

While one tensor is selected, earlier tensors are packed, hashed and written, and later ones are read.

Legend: O rows, I columns, B = ceil(I/8).
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lottery.files.atomic import atomic_write
from lottery.files.hashes import file_sha256
from lottery.files.reading import read_json
from lottery.kernels import quantizing, select
from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.headers import TensorInfo
from lottery.models.tensors import FLOAT_BITS
from lottery.progress import progress_bar, say
from lottery.pruning.reading import Budget, check_finite, stream_of
from lottery.pruning.selection import Selection
from lottery.pruning.tensors import all_places, columns_of, tensor_entry, tensor_info, to_quantize
from lottery.spec import FORMAT_VERSION, Spec, ticket_id
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

PACKERS = 2  # tensors that are packed and hashed at once
Unfinished = deque[tuple[int, Future[None]]]  # (bytes, write) of each tensor that is not yet on disk


def prune_source(
    source: Source,
    spec: Spec,
    chosen: Sequence[Place],
    folder: Path,
    survivors: Mapping[str, int] | None = None,
    title: str | None = None,
) -> None:
    """Writes the ticket that `spec` makes of `source` into the empty `folder`. The chosen places lose weights.

    `survivors` is that of `Selection`; `title` names the progress bar. Raises InputError where the source holds NaN or
    infinity.
    """
    places = all_places(source, chosen)
    if spec.scope == "global":
        places = sorted(places, key=lambda p: p.name)  # ties are broken in this order
    selection = Selection(spec, source, chosen, survivors)
    groups = group_tensors(source, spec, chosen)
    writer = Writer(folder, parts_of_all(source, spec, places, groups))
    title = title or f"prune {spec.target} to {100 * spec.sparsity:g}% by {spec.method}"
    entries = write_tensors(source, spec, places, groups, selection, writer, title)
    warn_if_sparser(spec, chosen, selection, entries)
    write_rest(source, spec, chosen, entries, folder)


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
    selection: Selection,
    writer: Writer,
    title: str,
) -> dict[str, dict[str, Any]]:
    """Reads, selects, packs and writes one tensor after the other. Returns what the record says of each."""
    entries: dict[str, dict[str, Any]] = {}
    total = sum(tensor_info(source, p).nbytes for p in places)
    packers, appender = ThreadPoolExecutor(PACKERS, "lottery-pack"), ThreadPoolExecutor(1, "lottery-put")
    budget = Budget(source, places)
    stream = stream_of(source, places, budget.ahead)
    with closing(writer), packers, appender, closing(stream), progress_bar(title, total, "bytes") as advance:
        unfinished: Unfinished = deque()
        for i, place in enumerate(places):
            info, (tensor, release) = tensor_info(source, place), next(stream)
            remove_finished(unfinished)
            entry = entries[place.name] = new_entry(source, place, info)
            bits_OI, mask_OB, zeros = select_survivors(place, info, tensor, groups, selection, entry)
            kind = spec.quantize if place.name in groups.in_8_bits else "none"
            packing = packers.submit(pack, source, spec, place, info, tensor, bits_OI, mask_OB, zeros, kind)
            unfinished.append((info.nbytes, appender.submit(write_packed, writer, packing, entry, release)))
            del tensor, bits_OI, mask_OB, packing  # the threads hold them for as long as they need them
            advance(info.nbytes)
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
    selection: Selection,
    entry: dict[str, Any],
) -> tuple[np.ndarray | None, np.ndarray | None, int]:
    """Returns the tensor's bits [O, I] and its bitmask [O, B], each None where it is not needed, and its number of
    zeros.

    For a targeted tensor, `entry` gets the number of weights that the spec asks to stay.
    """
    zeros = check_finite(place.name, info.dtype, tensor)
    if place.name not in groups.masked | groups.in_8_bits:
        return None, None, zeros
    bits_OI, mask_OB = matrix_bits(tensor, place.transposed), None
    if place.name in groups.targeted:
        mask_OB, entry["requested"] = selection.mask(place, info, bits_OI, zeros)
    elif place.name in groups.masked:
        mask_OB = select.select(bits_OI, zeros)  # an earlier ticket removed these weights
    return bits_OI, mask_OB, zeros


def warn_if_sparser(
    spec: Spec, chosen: Sequence[Place], selection: Selection, entries: Mapping[str, Mapping[str, Any]]
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
    source: Source, spec: Spec, chosen: Sequence[Place], entries: dict[str, dict[str, Any]], folder: Path
) -> None:
    """Writes the small files, and the record last."""
    for name in source.small_files:
        shutil.copyfile(source.folder / name, folder / name)
    if any(p.copy_of for p in chosen):
        atomic_write(folder / "config.json", untied(read_json(folder / "config.json")))
    write_record(
        folder,
        {
            "format": FORMAT_VERSION,
            "ticket": ticket_id(spec, source.base_record["files"], [p.name for p in chosen], source.ticket),
            "spec": spec.identity_params(),
            "base": source.base_record,
            **({"source": source.ticket} if source.ticket else {}),
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
        if spec.quantize != "none":
            quantizing.quantize(np.zeros((2, 8), integer), None, dtype, spec.quantize)
