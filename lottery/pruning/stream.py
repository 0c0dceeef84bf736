"""Shards in, ticket shards out: one tensor in memory at a time, never a whole model.

While one tensor is selected, those before it are packed, hashed and written, and those after it are read.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
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


def prune_source(
    source: Source,
    spec: Spec,
    chosen: Sequence[Place],
    folder: Path,
    survivors: Mapping[str, int] | None = None,
    title: str | None = None,
) -> None:
    """Write the ticket that `spec` makes of `source` into the empty `folder`; the chosen places lose weights.
    `survivors` as in `Selection`, `title` for the progress bar.

    Raises InputError where a weight of the source is not a number.
    """
    targeted = {p.name for p in chosen}
    places = all_places(source, chosen)
    if spec.scope == "global":
        places = sorted(places, key=lambda p: p.name)  # ties are broken in this order
    selection = Selection(spec, source, chosen, survivors)
    masked = targeted | {p.name for p in source.places if source.kept(p.name) is not None}
    in_8_bits = to_quantize(source, spec, chosen)
    entries: dict[str, dict[str, Any]] = {}
    kept_space = [parts_of(spec, p, tensor_info(source, p), p.name in masked, p.name in in_8_bits) for p in places]
    writer = Writer(folder, [part for parts in kept_space for part in parts])
    total = sum(tensor_info(source, p).nbytes for p in places)
    title = title or f"prune {spec.target} to {spec.sparsity:.0%} by {spec.method}"
    packers, appender = ThreadPoolExecutor(PACKERS, "lottery-pack"), ThreadPoolExecutor(1, "lottery-put")
    budget = Budget(source, places)
    stream = stream_of(source, places, budget.ahead)
    with closing(writer), packers, appender, closing(stream), progress_bar(title, total, "bytes") as advance:
        unfinished: deque[tuple[int, Future[None]]] = deque()
        for i, place in enumerate(places):
            info, (tensor, release) = tensor_info(source, place), next(stream)
            while unfinished and unfinished[0][1].done():
                unfinished.popleft()[1].result()
            entry = entries[place.name] = tensor_entry(place, info)
            if (original := source.original_name(place.copy_of or place.name)) != place.name:
                entry["copy_of"] = original
            zeros = check_finite(place.name, info.dtype, tensor)
            mask_OB = bits_OI = None
            if place.name in masked | in_8_bits:
                bits_OI = matrix_bits(tensor, place.transposed)
            if bits_OI is not None and place.name in masked:
                if place.name in targeted:
                    mask_OB, entry["requested"] = selection.mask(place, info, bits_OI, zeros)
                else:
                    mask_OB = select.select(bits_OI, zeros)  # what an earlier ticket removed
            kind = spec.quantize if place.name in in_8_bits else "none"
            packing = packers.submit(pack, source, spec, place, info, tensor, bits_OI, mask_OB, zeros, kind)
            unfinished.append((info.nbytes, appender.submit(write_packed, writer, packing, entry, release)))
            del tensor, bits_OI, mask_OB, packing
            advance(info.nbytes)
            coming = tensor_info(source, places[i + 1]).nbytes if i + 1 < len(places) else 0
            while unfinished and (not coming or sum(nbytes for nbytes, _ in unfinished) + coming > budget.unfinished):
                unfinished.popleft()[1].result()
        writer.finish()
    if selection.sparser:
        which = (
            "the targeted tensors together"
            if spec.scope == "global"
            else f"{selection.sparser} of {len(chosen)} targeted tensors"
        )
        say(
            f"warning: {which} hold more zeros than asked for and keep them: "
            f"the target is {sparsities({'tensors': entries})['sparsity_target']:.2%} zeros"
        )
    write_rest(source, spec, chosen, entries, folder)


def parts_of(
    spec: Spec, place: Place, info: TensorInfo, masked: bool, in_8_bits: bool
) -> list[tuple[str, str, Sequence[int]]]:
    """The keys under which a tensor may be stored, for the writer to keep space for."""
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
    """What completes a tensor's entry, and what is written of it in the way that `storage` and `quantize` say."""
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
    """One packed tensor into the ticket; in the order of submission, by one thread."""
    try:
        more, parts = packing.result()
        for part in parts:
            writer.add(*part)
        entry |= more
    finally:  # or the reader would wait for ever
        release()


def write_rest(
    source: Source, spec: Spec, chosen: Sequence[Place], entries: dict[str, dict[str, Any]], folder: Path
) -> None:
    """The small files, and last the record."""
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
    """config.json of a model whose head is a matrix of its own."""
    config["tie_word_embeddings"] = False
    if isinstance(config.get("text_config"), dict):
        config["text_config"]["tie_word_embeddings"] = False
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def warm_up(source: Source, spec: Spec, chosen: Sequence[Place]) -> None:
    """Have the kernels compiled before anything is timed."""
    for dtype in {tensor_info(source, p).dtype for p in chosen}:
        integer = np.dtype(str(FLOAT_BITS[dtype][0]).removeprefix("torch."))
        select.compile_kernels(integer)
        if spec.quantize != "none":
            quantizing.quantize(np.zeros((2, 8), integer), None, dtype, spec.quantize)
